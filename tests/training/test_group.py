"""The group that a process joins, the hardware that it uses, and how many threads compute beside the data workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from impresa.config.experiment import TrainerConfig
from impresa.errors import ConfigError
from impresa.training import distributed
from impresa.training.distributed import (
    Group,
    device_type,
    join_group,
    leave_cores_to_workers,
    processes_to_start,
    use_deterministic_algorithms,
)
from two_processes import in_two_processes


@pytest.fixture(autouse=True)
def _four_free_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    gpus(monkeypatch, 0)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def gpus(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)


def settings(**given: Any) -> TrainerConfig:
    return TrainerConfig(**given)


@pytest.mark.parametrize(("num_workers", "threads"), [(0, 4), (1, 3), (3, 1), (8, 1)])
def test_workers_get_cores_of_their_own(num_workers: int, threads: int) -> None:
    leave_cores_to_workers(num_workers)
    leave_cores_to_workers(num_workers)
    assert torch.get_num_threads() == threads


def test_the_user_s_own_choice_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    leave_cores_to_workers(3)
    assert torch.get_num_threads() == 4


def test_a_gpu_leaves_the_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 1)
    leave_cores_to_workers(3)
    assert torch.get_num_threads() == 4


def test_only_deterministic_algorithms_are_allowed_where_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    before = torch.are_deterministic_algorithms_enabled()
    try:
        for asked in (True, False):
            use_deterministic_algorithms(asked)
            assert torch.are_deterministic_algorithms_enabled() is asked
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize(
    ("given", "number", "kind", "processes"),
    [
        ({}, 0, "cpu", 1),
        ({}, 3, "cuda", 3),
        ({"accelerator": "cpu"}, 3, "cpu", 1),
        ({"accelerator": "cpu", "devices": 5}, 0, "cpu", 5),
        ({"accelerator": "gpu", "devices": 2}, 3, "cuda", 2),
        ({"devices": 1}, 3, "cuda", 1),
    ],
)
def test_a_process_for_each_device(
    given: dict[str, Any], number: int, kind: str, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, number)
    assert device_type(settings(**given)) == kind
    assert processes_to_start(settings(**given)) == processes


@pytest.mark.parametrize(("number", "reason"), [(0, "torch finds no GPU"), (2, "there are 2 GPUs")])
def test_hardware_that_is_not_there_is_one_line(number: int, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, number)
    with pytest.raises(ConfigError) as caught:
        processes_to_start(settings(accelerator="gpu", devices=3))
    line = f"trainer.accelerator: accelerator gpu, devices 3 cannot be had here ({reason}); try cpu or auto"
    assert caught.value.lines == (line,)


def test_several_machines_need_a_launcher() -> None:
    with pytest.raises(ConfigError, match=r"trainer.num_nodes: 3 machines need a launcher on each"):
        processes_to_start(settings(num_nodes=3, accelerator="cpu"))


def started(monkeypatch: pytest.MonkeyPatch, **env: str) -> list[str | None]:
    """In a process with these variables: the backends that are joined."""
    joined: list[str | None] = []
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed.distributed, "init_process_group", lambda backend, **_: joined.append(backend))
    monkeypatch.setattr(os, "environ", dict(os.environ))  # what joining writes there is forgotten
    return joined


SIX = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize("given", [{}, {"devices": 2}, {"devices": 2, "num_nodes": 3}, {"num_nodes": 3}])
def test_a_process_joins_those_that_were_started_with_it(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = started(monkeypatch, **SIX)
    assert processes_to_start(settings(**given)) == 1
    assert join_group(settings(**given)) == Group(torch.device("cpu"), 5, 6)
    assert joined == ["gloo"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"devices": 4}, "trainer.devices: the config asks for 4 on each machine, and 2 processes were started there"),
        ({"num_nodes": 2}, "trainer.num_nodes: the config asks for 2 machines, and processes were started on 3"),
    ],
)
def test_a_config_that_contradicts_the_launcher_is_refused(
    given: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = started(monkeypatch, **SIX)
    with pytest.raises(ConfigError, match=line):
        join_group(settings(**given))
    assert joined == []


def test_one_process_is_a_group_of_its_own() -> None:
    group = join_group(settings())
    assert group == Group(torch.device("cpu"))
    model, value = torch.nn.Linear(1, 1), torch.tensor(3.0)
    assert group.wrap(model) is model
    assert (group.sum(value), group.mean(value), group.gather([1]), group.any(True)) == (3.0, 3.0, [1], True)


def collect(rank: int) -> dict[str, Any]:
    group = join_group(TrainerConfig(accelerator="cpu", devices=2))
    value = torch.tensor([1.0, rank])
    found = {
        "sum": group.sum(value),
        "mean": group.mean(value),
        "items": group.gather([rank] * (rank + 1)),
        "any": [group.any(False), group.any(rank == 1)],
    }
    return {**found, "untouched": value, "main": group.is_main}


def test_two_processes_know_the_same(tmp_path: Any) -> None:
    found = in_two_processes(collect, tmp_path, start="fork")
    for rank, known in enumerate(found):
        assert known["sum"].tolist() == [2.0, 1.0]
        assert known["mean"].tolist() == [1.0, 0.5]
        assert known["items"] == [0, 1, 1]
        assert known["any"] == [False, True]
        assert known["untouched"].tolist() == [1.0, rank]
        assert known["main"] is (rank == 0)
