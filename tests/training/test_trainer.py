"""What the trainer is told of the hardware, and how many threads compute beside the data workers."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from impresa.config.experiment import ExperimentConfig, TrainerConfig
from impresa.training.trainer import build_trainer, leave_cores_to_workers


@pytest.fixture(autouse=True)
def _four_free_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


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
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    leave_cores_to_workers(3)
    assert torch.get_num_threads() == 4


def test_only_deterministic_algorithms_are_allowed_where_that_is_asked() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    try:
        for asked in (True, False):
            config = ExperimentConfig(trainer=TrainerConfig(deterministic=asked, accelerator="cpu"))
            build_trainer(config, None, callbacks=[], logger=False)
            assert torch.are_deterministic_algorithms_enabled() is asked
    finally:
        torch.use_deterministic_algorithms(before)


def test_processes_are_counted_over_all_nodes() -> None:
    settings = TrainerConfig(num_nodes=3, devices=2, strategy="ddp", accelerator="cpu")
    trainer = build_trainer(ExperimentConfig(trainer=settings), None, callbacks=[], logger=False)
    assert (trainer.num_nodes, trainer.world_size) == (3, 6)
