from __future__ import annotations

from pathlib import Path

import pytest

from impresa.errors import ConfigError
from impresa.training.processes import (
    end_process,
    has_siblings,
    inherited_run_dir,
    is_main_process,
    tell_run_dir,
)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "SLURM_NTASKS", "IMPRESA_RUN_DIR"):
        monkeypatch.setenv(name, "x")  # so that it is put back afterwards, whatever the test does
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("environment", "is_main", "siblings"),
    [
        ({}, True, False),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True, True),
        ({"RANK": "4", "LOCAL_RANK": "0"}, False, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False, True),
        ({"LOCAL_RANK": "1"}, False, True),
        ({"NODE_RANK": "1"}, False, True),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, False, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, True, False),
    ],
)
def test_launchers_are_understood(
    environment: dict[str, str], is_main: bool, siblings: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() is is_main
    assert has_siblings() is siblings


def test_processes_that_the_first_one_starts_inherit_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    tell_run_dir(Path("runs/a"))
    assert inherited_run_dir() is None
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert inherited_run_dir() == Path("runs/a")


def test_processes_that_start_at_once_need_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match="--output-dir: several processes"):
        inherited_run_dir()


def test_a_single_process_ends_the_usual_way() -> None:
    assert end_process() == 0
