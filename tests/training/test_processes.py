from __future__ import annotations

import os

import pytest

from impresa.errors import ConfigError
from impresa.training.processes import (
    Process,
    check_shared_folder,
    end_process,
    is_main_process,
    set_rendezvous,
    this_process,
)

OF_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*OF_LAUNCHERS, *(name for name in os.environ if name.startswith("SLURM"))):
        monkeypatch.setenv(name, "x")  # so that it is put back afterwards, whatever the test does
        monkeypatch.delenv(name)


TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SLURM = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_NUM_NODES": "2"}


@pytest.mark.parametrize(
    ("environment", "process"),
    [
        ({}, Process(0, 0, 1, 1)),
        (TORCHRUN, Process(5, 1, 8, 4)),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, Process(1, 1, 2, 2)),
        (SLURM, Process(3, 1, 4, 2)),
        ({**SLURM, **TORCHRUN}, Process(5, 1, 8, 4)),
        ({**SLURM, "SLURM_JOB_NAME": "interactive"}, Process(0, 0, 1, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, Process(0, 0, 1, 1)),
    ],
)
def test_launchers_are_understood(
    environment: dict[str, str], process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert this_process() == process
    assert is_main_process() is (process.rank == 0)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu[003-007,12],other", "gpu003"), ("a[5,7]", "a5"), ("n-1-[2-3]", "n-1-2")],
)
def test_processes_of_slurm_meet_at_the_first_host(nodes: str, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NODELIST", nodes)
    monkeypatch.setenv("SLURM_JOB_ID", "123456")
    set_rendezvous(Process(3, 1, 4, 2))
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == (host, "18456")
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("3", "4")


def test_a_meeting_point_that_was_given_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "there")
    monkeypatch.setenv("MASTER_PORT", "7")
    set_rendezvous(Process(0, 0, 2, 2))
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("there", "7")


def test_processes_that_start_at_once_need_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    check_shared_folder(named=False)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    check_shared_folder(named=True)
    with pytest.raises(ConfigError, match="--output-dir: several processes"):
        check_shared_folder(named=False)


def test_a_single_process_ends_the_usual_way() -> None:
    assert end_process() == 0
