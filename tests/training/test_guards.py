"""Guards of a step: what is not finite, losses that jump, and processes that are stuck."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from impresa.errors import TrainingError
from impresa.training import watchdog
from impresa.training.checkpoints import read_checkpoint
from impresa.training.distributed import Group
from impresa.training.guards import LEAST_LOSSES, SPIKE_WINDOW, SpikeWatch
from impresa.training.processes import STUCK, Process
from impresa.training.run import train
from impresa.training.state import Precision
from killed import in_child
from tiny_run import tiny_experiment


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_its_samples(
    bad: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, seen = Precision.forward, list[list[str]]()

    def spoilt(self: Precision, model: Any, batch: Any) -> Any:
        output = forward(self, model, batch)
        if not model.training:
            return output
        seen.append(list(batch.ids))
        return replace(output, loss=output.loss * bad) if len(seen) == 9 else output  # of step 5, the second batch

    monkeypatch.setattr(Precision, "forward", spoilt)
    run = tmp_path / "run"
    with pytest.raises(TrainingError) as caught:
        train(tiny_experiment("trainer.logging.save_interval=2"), run, command=[])
    (line,) = caught.value.lines
    step = read_checkpoint(run / "checkpoints/last.ckpt")["step"]
    assert step == 4
    assert line.startswith(f"step 5: the loss is {bad}, with the samples {', '.join(seen[-1])}, most likely")
    assert line.endswith(f"; the last good checkpoint is {run / 'checkpoints/last.ckpt'} (step 4)")


ALONE = Group(torch.device("cpu"))


@dataclass
class Named:
    ids: list[str]


def test_a_loss_that_jumps_is_named_once_in_a_window(caplog: pytest.LogCaptureFixture) -> None:
    watch = SpikeWatch(ALONE)
    losses = [2 + 0.01 * (step % 3) for step in range(LEAST_LOSSES + 10)]
    losses += [5.0, 2.0, 6.0] + [2.0] * SPIKE_WINDOW + [7.0]
    for step, loss in enumerate(losses, start=1):
        watch.after_step(step, [Named(["a", "b"])], {"loss": torch.tensor(loss)})
    first, last = caplog.messages
    rule = f"the median of the {LEAST_LOSSES + 10} steps before it is 2.01, their deviation 0.01"
    assert first == f"step {LEAST_LOSSES + 11}: the loss jumps to 5 ({rule}); samples: a, b"
    assert last.startswith(f"step {len(losses)}: the loss jumps to 7 (")


def test_noise_and_a_loss_that_stands_still_are_no_spikes(caplog: pytest.LogCaptureFixture) -> None:
    watch, noise = SpikeWatch(ALONE), torch.randn(2000, generator=torch.Generator().manual_seed(0))
    for step, loss in enumerate([*(3 + 0.1 * noise).tolist(), *[1.0] * 200, 1.05], start=1):
        watch.after_step(step, [], {"loss": torch.tensor(loss)})
    assert not caplog.messages


def test_a_process_that_is_stuck_prints_where_it_stands_and_ends(capfd: pytest.CaptureFixture[str]) -> None:
    def hang_here() -> None:
        with watchdog.Watchdog(3 / 60) as guard:
            for step in range(4):
                guard.beat(step)
            time.sleep(600)

    begun = time.monotonic()
    assert in_child(hang_here) == STUCK
    assert time.monotonic() - begun < 300
    said = capfd.readouterr().err
    assert "process 0: no step for 0.05 minutes after step 3; it stands here:\n" in said
    assert "in hang_here" in said


@pytest.mark.parametrize(("num_processes", "seconds", "code"), [(1, 3, 0), (2, 20, 1)])
def test_where_python_cannot_run_a_stack_is_printed_and_a_group_ends(
    num_processes: int, seconds: int, code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watchdog, "GRACE_S", 0.2)
    monkeypatch.setattr(watchdog, "this_process", lambda: Process(world_size=num_processes))

    def held() -> None:
        with watchdog.Watchdog(1 / 60):
            ctypes.PyDLL(None).sleep(seconds)  # which does not let other threads of Python run

    assert in_child(held) == code
    assert "in held" in capfd.readouterr().err


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="where processes can be suspended")
def test_a_process_that_was_suspended_is_not_stuck(capfd: pytest.CaptureFixture[str]) -> None:
    def suspended() -> bool:
        with watchdog.Watchdog(2 / 60):
            resumer = subprocess.Popen(["sh", "-c", f"sleep 3; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
            resumer.wait()
            time.sleep(0.5)
        return False

    assert in_child(suspended) == 0
    assert "no step for" not in capfd.readouterr().err


def test_a_watchdog_that_is_over_ends_nothing() -> None:
    def brief() -> None:
        with watchdog.Watchdog(2 / 60):
            pass
        time.sleep(2.5)

    assert in_child(brief) == 0
