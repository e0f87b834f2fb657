"""A group that is started again after a death, and ends when one of it is stuck; in one launch, for it takes long."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_launch import LONG, faults, finished

ACCIDENTS = """
import os, pathlib, signal, time
if "RANK" in os.environ:
    import impresa.training.watchdog as watchdog
    watchdog.GRACE_S = 20
if os.environ.get("RANK") == "1":
    import impresa.training.loop as loop
    real, died = loop.train_step, pathlib.Path("died")
    def train_step(training, batches):
        step = training.state.step
        if step == 4 and not died.exists():
            died.write_text(f"{step}")
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 7:
            hang_here()
        return real(training, batches)
    def hang_here():
        time.sleep(300)
    loop.train_step = train_step
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="where SIGKILL is told as on Linux")
def test_a_group_is_started_again_and_a_stuck_one_ends_with_the_stack_of_each(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(ACCIDENTS)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    limits = ("trainer.max_restarts=1", "trainer.timeout_minutes=0.5")
    words = ("-m", "impresa", *LONG, *limits, "--output-dir", "run")
    code, out, err = finished(tmp_path, words, PYTHONPATH=path)
    assert (code, out) == (2, "")
    again = "process 1 was killed by SIGKILL; starting all again (0 restarts are left after this one)"
    assert err.count(again) == 1
    assert all(f"process {rank}: no step for 0.5 minutes after step 7; it stands here:\n" in err for rank in (0, 1))
    assert "in hang_here" in err
    assert faults(err)[-1].startswith(("process 0 made no step for too long", "process 1 made no step for too long"))
    assert faults(err)[-1].endswith("`impresa train --output-dir run --resume` continues from the last checkpoint")
