from __future__ import annotations

import csv
import io
import json
import logging
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from impresa.evaluation.figures import figures
from impresa.evaluation.results import read_evaluation
from impresa.reports.cards import cards
from impresa.run_dir.claim import clear
from impresa.training import wandb_run
from impresa.training.logs import PACE, MetricsCsv, build_loggers
from impresa.training.peaks import TOLD
from impresa.training.run import train
from impresa.training.wandb_run import start_wandb
from tiny_run import tiny_experiment


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_call_is_a_line_under_its_step(tmp_path: Path) -> None:
    log = MetricsCsv(tmp_path / "metrics.csv", 0)
    log.log(10, {"epoch": 0, "train_loss": 1.25, "lr": 1e-3})
    log.log(20, {"epoch": 0, "train_loss": 1.0, "lr": 5e-4})
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "step,epoch,train_loss,lr,val_loss",
        "10,0,1.25,0.001,",
        "20,0,1,0.0005,",
    ]


def test_a_new_metric_becomes_a_column_and_old_lines_stay(tmp_path: Path) -> None:
    log = MetricsCsv(tmp_path / "metrics.csv", 0)
    log.log(1, {"train_loss": 1.0})
    log.log(1, {"val_loss": 2.0, "val_recall": 0.5})
    first, second = rows(tmp_path / "metrics.csv")
    assert (first["train_loss"], first["val_recall"]) == ("1", "")
    assert (second["train_loss"], second["val_loss"], second["val_recall"]) == ("", "2", "0.5")


def test_a_resumed_run_drops_the_lines_after_its_checkpoint(tmp_path: Path) -> None:
    log = MetricsCsv(tmp_path / "metrics.csv", 0)
    for step in (1, 2, 3):
        log.log(step, {"train_loss": float(step), "extra": 0.5})
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4,0,1")  # cut off by a crash
    MetricsCsv(tmp_path / "metrics.csv", 2).log(3, {"train_loss": 9.0})
    assert [(row["step"], row["train_loss"], row["extra"]) for row in rows(tmp_path / "metrics.csv")] == [
        ("1", "1", "0.5"),
        ("2", "2", "0.5"),
        ("3", "9", ""),
    ]


def test_a_resumed_run_that_has_nothing_left_to_log_drops_them_too(tmp_path: Path) -> None:
    log = MetricsCsv(tmp_path / "metrics.csv", 0)
    for step in (1, 2, 3):
        log.log(step, {"train_loss": float(step)})
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("\0\0,0,1,1,1\n")  # a block that was never written
    MetricsCsv(tmp_path / "metrics.csv", 2)
    assert [row["step"] for row in rows(tmp_path / "metrics.csv")] == ["1", "2"]
    MetricsCsv(tmp_path / "new" / "metrics.csv", 0)
    assert not (tmp_path / "new").exists()


def test_the_csv_is_always_there_and_the_rest_can_be_turned_off(tmp_path: Path) -> None:
    assert [type(log) for log in build_loggers(tiny_experiment(), tmp_path, 0)] == [MetricsCsv]


def test_wandb_without_a_key_logs_offline_with_one_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    # wandb advertises where it finds one of twenty libraries, which other tests may have imported.
    monkeypatch.setattr("wandb.integration.weave.weave._maybe_suggest_weave_installation", lambda: None, raising=False)
    with caplog.at_level(logging.WARNING, logger="impresa"):
        run = start_wandb(tiny_experiment("labels.tags=[a,b]", "trainer.logging.project=p"), tmp_path)
    assert run is not None
    run.log(1, {"train_loss": 1.0})
    run.close(success=True)
    notice = f"wandb: no API key; logging offline, upload later with `wandb sync {tmp_path}/wandb/offline-run-*`"
    assert [record.message for record in caplog.records if record.name.startswith("impresa")] == [notice]
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    out, err = capfd.readouterr()
    assert out == ""
    assert err.replace(notice, "").strip() == ""  # wandb itself is silent


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modes in which `wandb.init` was called; online it fails."""
    import wandb

    called: list[str] = []

    def init(mode: str, **_: object) -> object:
        called.append(mode)
        if mode == "online":
            raise RuntimeError("the server refuses\nwith a long story")
        return object()

    monkeypatch.setattr(wandb, "init", init)
    return called


def test_wandb_with_a_key_and_no_network_logs_offline_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, modes: list[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(wandb_run, "NETWORK_PATIENCE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert start_wandb(tiny_experiment(), tmp_path) is not None
    assert modes == ["offline"]
    assert "127.0.0.1 does not answer; logging offline" in caplog.text


def test_looking_up_a_name_for_ever_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(wandb_run.urllib.request, "urlopen", lambda *_, **__: release.wait(120) and io.BytesIO())
    monkeypatch.setattr(wandb_run, "NETWORK_PATIENCE_S", 0.1)
    started = time.monotonic()
    assert not wandb_run._answers("https://api.wandb.ai")
    assert time.monotonic() - started < 60
    release.set()


def test_wandb_with_a_server_that_refuses_logs_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, modes: list[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(wandb_run, "_answers", lambda address: True)
    assert start_wandb(tiny_experiment(), tmp_path) is not None
    assert modes == ["online", "offline"]
    assert "wandb: the server refuses; logging offline" in caplog.text
    assert len(caplog.records) == 1


def test_the_users_own_choice_of_mode_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modes: list[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert start_wandb(tiny_experiment(), tmp_path) is not None
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert start_wandb(tiny_experiment(), tmp_path) is None
    assert modes == ["offline"]


def test_a_key_in_netrc_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modes: list[str]) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(wandb_run, "_answers", lambda address: True)
    start_wandb(tiny_experiment(), tmp_path)
    assert modes[0] == "online"


def test_without_wandb_training_goes_on_with_a_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb_run, "find_spec", lambda name: None)
    log, *rest = build_loggers(tiny_experiment("trainer.logging.wandb=true"), tmp_path, 0)
    assert isinstance(log, MetricsCsv)
    assert not rest
    assert len(caplog.records) == 1
    assert "wandb is not installed" in caplog.text


def test_the_parts_of_a_run_have_one_id_in_wandb_and_a_run_in_its_place_has_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    told: list[dict[str, object]] = []
    monkeypatch.setattr(wandb, "init", lambda **kwargs: told.append(kwargs))
    start_wandb(tiny_experiment(), tmp_path)
    start_wandb(tiny_experiment(), tmp_path)
    clear(tmp_path)  # as before a new run
    start_wandb(tiny_experiment(), tmp_path)
    first, second, new = (kwargs["id"] for kwargs in told)
    assert first == second != new
    assert [kwargs["resume"] for kwargs in told] == ["allow"] * 3  # offline too, or a part would replace the others


def test_the_advice_to_sync_keeps_all_parts_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, modes: list[str]
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    run_dir = tmp_path / "my run"
    run_dir.mkdir()
    for version, command in (("0.29.0", "wandb sync --append"), ("0.30.1", "wandb sync"), ("1.0", "wandb sync")):
        monkeypatch.setattr(wandb, "__version__", version)
        start_wandb(tiny_experiment(), run_dir)
        assert f"`{command} '{run_dir}/wandb'/offline-run-*`" in caplog.records[-1].message
    assert modes == ["offline"] * 3


def test_what_wandb_is_told_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    told: dict[str, object] = {}
    monkeypatch.setattr(wandb, "init", lambda **kwargs: told.update(kwargs))
    config = tiny_experiment(
        *("trainer.logging.project=p", "trainer.logging.entity=e", "trainer.logging.name=n"),
        *("labels.tags=[t]", "labels.description=d", "labels.version=v"),
    )
    start_wandb(config, tmp_path)
    assert {key: told[key] for key in ("project", "entity", "name", "tags", "notes", "mode")} == {
        **{"project": "p", "entity": "e", "name": "n", "tags": ["t"], "notes": "d", "mode": "offline"}
    }
    assert json.dumps(told["config"])


def offline_rows(folder: Path) -> list[dict[str, Any]]:
    """All that was logged into the offline files of a folder, row by row: records in the form of LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    found = []
    for file in sorted(folder.rglob("run-*.wandb")):
        data, place, content = file.read_bytes(), 7, b""
        while place + 7 <= len(data):
            if (left := -place % 32_768) < 7:  # of the block, which is filled up
                place += left
                continue
            _, length, kind = struct.unpack("<IHB", data[place : place + 7])
            content += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # whole, or the last part
                record, content = Record.FromString(content), b""
                items = record.history.item
                if items:
                    found.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
    return found


def test_a_run_has_curves_results_and_pictures_in_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impresa.training.finish.write_report", lambda _: None)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv(TOLD, "1e-3")
    config = tiny_experiment("trainer.logging.wandb=true", "trainer.epochs=1", "optimization.lr_memory=1e-4")
    run = train(config, tmp_path / "run", command=["impresa", "train"])
    found = offline_rows(run / "wandb")
    trained = [row for row in found if "train_loss" in row]
    assert [row["_step"] for row in trained] == [1, 2, 3]
    names = {"lr", "lr_memory", "gradient_norm", "logit_scale", *PACE}
    assert names <= trained[-1].keys()
    (line,) = [row for row in rows(run / "metrics.csv") if row["train_loss"] and row["step"] == "3"]
    written = {name: float(value) for name, value in line.items() if value and name in trained[-1]}
    assert names <= written.keys()
    assert {name: trained[-1][name] for name in written} == pytest.approx(written, rel=1e-5)
    assert 0 < trained[-1]["mfu"] < 1e4
    assert trained[-1]["tokens_per_second"] > 3 * trained[-1]["samples_per_second"]
    results = {name: value for row in found for name, value in row.items() if name.startswith("test/")}
    evaluation = read_evaluation(run)
    assert evaluation is not None
    stored = {f"test/{name}": value for name, value in figures(evaluation).items()}
    assert {name: results[name] for name in stored} == pytest.approx(stored)
    texts = [card.text for card in cards(evaluation.gallery)]
    numbers = range(1, len(texts) + 1)
    assert [results[f"test/example_{number}/caption"] for number in numbers] == texts
    assert len(texts) > 6
    for number in numbers:
        (file,) = (run / "wandb").rglob(Path(results[f"test/example_{number}/path"]).name)
        assert file.stat().st_size == results[f"test/example_{number}/size"]
