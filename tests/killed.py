"""Training runs that are killed by SIGKILL at a chosen moment, in children of this process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from impresa.config import ExperimentConfig
from impresa.run_dir.layout import WEIGHTS

Moment = Literal["before a step", "between its batches", "while a checkpoint is written"]


def keep_weights(config: Any, parts: Any, run_dir: Path, *_: Any, **__: Any) -> None:
    """In place of the evaluation and the report at the end of a run."""
    save_file({name: tensor.clone() for name, tensor in parts.model.state_dict().items()}, run_dir / WEIGHTS)


def without_end() -> None:
    """Let trainings of this process end with their weights."""
    from impresa.training import finish

    finish.finish = keep_weights  # type: ignore[assignment]


def kill_at(step: int, moment: Moment) -> None:
    """Let this process kill itself in the step that follows so many others, or at the first checkpoint from there."""
    from impresa.training import checkpoints, loop
    from impresa.training.state import Precision

    make_step, save, forward = loop.train_step, torch.save, Precision.forward
    done, num_forward = [0], [0]

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def stepping(training: Any, batches: Any) -> Any:
        done[0], num_forward[0] = training.state.step, 0
        if moment == "before a step" and done[0] >= step:
            die()
        return make_step(training, batches)

    def computing(self: Any, model: Any, batch: Any) -> Any:
        num_forward[0] += model.training
        if moment == "between its batches" and done[0] >= step and num_forward[0] > 1:
            die()
        return forward(self, model, batch)

    def saving(content: Any, file: Any, **options: Any) -> None:
        save(content, file, **options)  # processes send each other objects in this way, too
        if hasattr(file, "name") and moment == "while a checkpoint is written" and done[0] >= step:
            file.truncate(file.tell() // 2)
            file.flush()
            die()

    loop.train_step = stepping  # type: ignore[assignment]
    Precision.forward = computing  # type: ignore[method-assign]
    checkpoints.torch.save = saving  # type: ignore[assignment]


def in_child(work: Callable[[], object]) -> int:
    """The exit code of a child that does the work, or what that returns; negative for the signal that ended it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        torch.set_num_threads(1)
        without_end()
        code = work()
        os._exit(code if isinstance(code, int) else 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def train_in_child(config: ExperimentConfig, run_dir: Path, kill: tuple[int, Moment] | None = None) -> int:
    """Train, or go on, in a child that is killed at a moment; returns its exit code."""
    from impresa.training.run import train

    def work() -> None:
        if kill is not None:
            kill_at(*kill)
        train(config, run_dir, command=[], resume=True)

    return in_child(work)
