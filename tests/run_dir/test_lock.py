"""One training at a time writes into a run directory, and a lock of a dead process holds nobody up."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from impresa.errors import CheckpointError
from impresa.run_dir import lock
from impresa.run_dir.claim import claim, claimed
from impresa.run_dir.lock import check_lock, locked, refuse_running
from tiny_run import tiny_experiment

HOLDING = """
import os, sys, time
from pathlib import Path
from impresa.run_dir.lock import locked
with locked(Path(sys.argv[1])):
    child = os.fork()  # as a data worker, which outlives its parent for a while
    if child == 0:
        print(os.getpid(), flush=True)
    time.sleep(600)
"""


def test_a_second_training_is_told_who_holds_it_until_that_dies(tmp_path: Path) -> None:
    run = tmp_path / "new" / "run"
    config = tiny_experiment()
    with subprocess.Popen([sys.executable, "-c", HOLDING, str(run)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            line = rf"run: is being trained by process {holder.pid} on '.+'; wait for it, or choose another"
            for attempt in (
                lambda: locked(run).__enter__(),
                lambda: claimed(run, config, resume=True).__enter__(),
                lambda: claim(run, config, resume=False),
            ):
                with pytest.raises(CheckpointError, match=line):
                    attempt()
            holder.kill()
            holder.wait()
            assert (run / ".lock").exists()
            with claimed(run, config, resume=False) as checkpoint:
                assert checkpoint is None
                assert str(os.getpid()) in (run / ".lock").read_text()
        finally:
            holder.kill()
            os.kill(child, 9)
    assert list(run.iterdir()) == []


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"process": 1e999, "host": 1}', b"3", b"\xff"])
def test_a_lock_of_odd_content_is_a_lock(content: bytes, tmp_path: Path) -> None:
    handle = os.open(tmp_path / ".lock", os.O_CREAT | os.O_RDWR)
    os.write(handle, content)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(CheckpointError, match="is being trained; wait for it"):
            refuse_running(tmp_path)
    finally:
        os.close(handle)


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    before = tmp_path.stat().st_mtime_ns
    time.sleep(0.01)
    with (
        pytest.raises(CheckpointError, match="is not empty and no run"),
        claimed(tmp_path, tiny_experiment(), resume=False),
    ):
        pass
    assert tmp_path.stat().st_mtime_ns == before


def test_what_a_stranger_puts_in_its_place_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "run" / ".lock").symlink_to(outside)
    refuse_running(tmp_path / "run")
    with pytest.raises(OSError, match="run"), locked(tmp_path / "run"):
        pass
    assert outside.read_text() == "mine"
    (tmp_path / "run" / ".lock").unlink()
    (tmp_path / "run" / ".lock").write_text("[1")
    with locked(tmp_path / "run"), pytest.raises(CheckpointError, match=r"run: is being trained by process"):
        lock._take(tmp_path / "run" / ".lock")


def test_a_directory_that_is_deleted_or_replaced_is_noticed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with locked(run):
        check_lock(run)
        (run / ".lock").unlink()
        run.rmdir()
        with pytest.raises(CheckpointError, match="run: was deleted while it was trained; nothing is left to resume"):
            check_lock(run)
        run.mkdir()
        (run / ".lock").write_text("of another training")
        with pytest.raises(CheckpointError, match="was deleted"):
            check_lock(run)
    assert (run / ".lock").exists()
    check_lock(run)  # nobody holds it
