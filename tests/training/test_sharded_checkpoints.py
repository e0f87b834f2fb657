"""Checkpoints in parts are written while the training goes on, and hold what was when they were begun."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from full_disk import files_of_at_most
from impresa.files import clear_half_written
from impresa.training.distributed import Group
from impresa.training.sharded_checkpoints import STATE, PartWriter, outlined, whole_content
from two_processes import in_two_processes


class Run:
    """A training whose weights, averages and points all are the number of its step."""

    def __init__(self, rank: int, folder: Path) -> None:
        self.group = Group(torch.device("cpu"), rank, 2, shares_model=True)
        self.model = nn.Linear(5, 3)
        fully_shard(self.model, mesh=init_device_mesh("cpu", (2,)))
        self.points: list[int] = []
        self.whole = torch.zeros(2)
        self.writer = PartWriter(self.group)
        self.path = folder / "run" / "last.ckpt"
        self.path.parent.mkdir(exist_ok=True)

    def make_step(self, step: int) -> None:
        with torch.no_grad():
            for tensor in (*self.model.parameters(), self.whole):
                tensor.fill_(step)
        self.points.append(step)
        assert self.group.sum(torch.ones(1)) == 2  # processes talk while a checkpoint is written

    def begin(self, then: Callable[[], None] = lambda: None) -> None:
        content = {"model": self.model.state_dict(), "whole": self.whole, "seen": {"points": self.points}}
        self.writer.begin(self.path, content, then)

    def fault(self) -> str:
        with pytest.raises(OSError) as caught:  # noqa: PT011
            self.writer.wait()
        self.writer.wait()  # it is told once
        return str(caught.value)


def stored(path: Path) -> list[float]:
    """The numbers that a checkpoint holds: those of weights, and the last point."""
    content = whole_content(outlined(path, torch.load(path / STATE, weights_only=True)))
    numbers = torch.cat([*(tensor.flatten() for tensor in content["model"].values()), content["whole"]])
    return [*numbers.unique().tolist(), content["seen"]["points"][-1]]


@contextmanager
def parts_held_up() -> Iterator[None]:
    """No part is written until the block has ended."""
    write, may_go_on = HuggingFaceStorageWriter.write_data, threading.Event()

    def held_up(self: Any, plan: Any, planner: Any) -> Any:
        may_go_on.wait(timeout=60)
        return write(self, plan, planner)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HuggingFaceStorageWriter, "write_data", held_up)
        try:
            yield
        finally:
            may_go_on.set()


def fail() -> None:
    raise OSError(28, "full", "copy")


def save_again_and_again(rank: int, folder: Path) -> dict[str, Any]:
    run = Run(rank, folder)
    found: dict[str, Any] = {}
    run.make_step(1)
    run.begin()
    run.make_step(2)
    run.writer.wait()
    with parts_held_up():
        run.begin()
        run.make_step(3)
        if rank == 0:
            found["meanwhile"] = stored(run.path)
            shutil.copytree(run.path.parent, folder / "killed")
        run.group.barrier()
    run.make_step(4)
    run.writer.wait()
    found["written"] = stored(run.path)
    with files_of_at_most(100) if rank == 1 else nullcontext():
        run.begin()
        found["fault of one"] = run.fault()
    run.begin(then=fail)
    found["fault of the first"] = run.fault()
    run.path = folder / "nowhere" / "last.ckpt"
    with pytest.raises(FileNotFoundError, match=r"nowhere/last\.ckpt"):
        run.begin()
    run.path = folder / "run" / "last.ckpt"
    found["still there"] = stored(run.path)
    run.begin()
    run.writer.wait()
    return {**found, "in the end": stored(run.path)}


def test_it_is_written_beside_the_training_and_holds_what_was(tmp_path: Path) -> None:
    first, second = in_two_processes(save_again_and_again, tmp_path, tmp_path, start="fork")
    assert first["meanwhile"] == [1.0, 1]
    for found in (first, second):
        assert found["written"] == [2.0, 2]
        assert found["still there"] == found["in the end"] == [4.0, 4]
        assert found["fault of one"] == f"[Errno 27] File too large: '{tmp_path}/run/last.ckpt'"
        assert found["fault of the first"] == "[Errno 28] full: 'copy'"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["last.ckpt"]
    killed = tmp_path / "killed"
    assert len(list(killed.iterdir())) == 2
    clear_half_written(killed)
    assert [stored(path) for path in killed.iterdir()] == [[1.0, 1]]
