"""`impresa doctor`: what it finds on this machine, as text and as JSON, and when it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from impresa.cli.main import main
from impresa.training import doctor
from tiny_run import TINY


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def findings(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, list[tuple[str, str]]]]:
    code = main(["doctor", *words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] == (code == 0)
    by_name: dict[str, list[tuple[str, str]]] = {}
    for finding in found["findings"]:
        by_name.setdefault(finding["name"], []).append((finding["state"], finding["text"]))
    return code, by_name


def test_it_looks_at_versions_devices_processes_disk_and_data(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = findings(capsys, "shapes", *TINY)
    assert code == 0
    assert {"versions", "devices", "processes", "bitsandbytes", "disk", "data"} <= set(found)
    assert "torch " in found["versions"][0][1]
    assert "CPU cores" in found["devices"][0][1]
    assert " reach each other by " in found["processes"][0][1]
    assert "18 samples to train on, 8 to validate" in found["data"][0][1]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without starting processes."""
    monkeypatch.setattr(doctor, "_processes", lambda: doctor.Finding("processes", "ok", "not looked at"))
    monkeypatch.setattr(doctor, "DISK_MIB", 1)


@pytest.mark.usefixtures("quick")
def test_a_fault_is_exit_code_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, found = findings(capsys, "shapes", "dataset.train_path=nowhere")
    assert code == 1
    assert found["data"][0][0] == "fault"
    assert "nowhere does not exist" in found["data"][0][1]
    (tmp_path / "file").touch()
    code, found = findings(capsys, "--output-dir", "file/runs")
    assert code == 1
    assert found["disk"] == [("fault", "file/runs: Not a directory")]
    assert "data" not in found


@pytest.mark.usefixtures("quick")
def test_what_is_slow_is_said_with_the_reason_and_is_no_fault(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "SLOW_DISK_MIB_S", 1e9)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "slow  disk:" in out
    assert "checkpoints will be slow: raise trainer.logging.save_interval" in out


def test_processes_that_cannot_meet_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "none-such")
    finding = doctor._processes()
    assert finding.state == "fault"
    assert "2 do not reach each other by gloo (" in finding.text
