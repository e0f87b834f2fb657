"""Several processes: started by the command itself, by torchrun, by SLURM; one that dies ends all, in one line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from run_metrics import rows
from tiny_run import TINY

TESTS = Path(__file__).parents[1]
SHORT = ("train", "shapes", *TINY, "trainer.max_steps=2", "losses.gather_distributed=true")
LONG = ("train", "shapes", *TINY, "trainer.epochs=400", "trainer.logging.save_interval=2", "trainer.devices=2")
HOW_ON = "`impresa train --output-dir run --resume` continues"


@contextmanager
def started(folder: Path, words: tuple[str, ...], **more: str) -> Iterator[subprocess.Popen[str]]:
    """A command in a folder; nothing of it is left afterwards."""
    alone = {name: value for name, value in os.environ.items() if not re.match("RANK|WORLD|LOCAL|MASTER|SLURM", name)}
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env={**alone, "PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")])), **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def finished(folder: Path, words: tuple[str, ...], **more: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    with started(folder, words, **more) as process:
        out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def faults(err: str) -> list[str]:
    """What standard error says besides progress and notices."""
    return [
        line
        for line in err.splitlines()
        if not re.match(r"step \d|2 processes train|this run will take|.*cut to \d", line)
    ]


def weights(run_dir: Path) -> dict[str, Any]:
    return load_file(run_dir / "model.safetensors")


def workers(launcher: int) -> list[int]:
    """The processes that a launcher has started, in the order of their ranks."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            environment = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has ended
        rank = [line.removeprefix("RANK=") for line in environment if line.startswith("RANK=")]
        if parent == str(launcher) and rank:
            found[int(rank[0])] = int(folder.name)
    return [found[rank] for rank in sorted(found)]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(2400):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{path} does not appear")


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run of two processes that the command has started, what it printed, and its notices."""
    folder = tmp_path_factory.mktemp("launched")
    code, out, err = finished(folder, ("-m", "impresa", *SHORT, "trainer.devices=2", "--output-dir", "run"))
    assert code == 0, err
    return folder / "run", out, err


def test_the_command_starts_a_process_for_each_device(launched: tuple[Path, str, str]) -> None:
    run_dir, out, err = launched
    assert out.splitlines()[-1] == "run"
    assert out.count("report: ") == 1
    assert err.count("2 processes train together, on cpu by gloo") == 1
    assert err.count("step 2/2  val_loss") == 1
    assert '"shapes"' in (run_dir / "environment.json").read_text()  # the command that the user typed


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks processes up in /proc")
def test_a_process_that_is_killed_ends_the_run_in_one_line_and_it_resumes(tmp_path: Path) -> None:
    with started(tmp_path, ("-m", "impresa", *LONG, "--output-dir", "run")) as process:
        wait_for(tmp_path / "run/checkpoints/last.ckpt", process)
        both = workers(process.pid)
        assert len(both) == 2
        os.kill(both[1], signal.SIGKILL)
        _, err = process.communicate(timeout=240)
    assert process.returncode == 2
    assert faults(err) == [f"process 1 was killed by SIGKILL; {HOW_ON} from the last checkpoint"]
    assert not any(Path(f"/proc/{pid}").exists() for pid in both)

    with started(tmp_path, ("-m", "impresa", "train", "--output-dir", "run", "--resume")) as process:
        before = (tmp_path / "run/checkpoints/last.ckpt").stat().st_mtime_ns
        while (tmp_path / "run/checkpoints/last.ckpt").stat().st_mtime_ns == before:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)  # as Ctrl-C: all end their step and save
        out, err = process.communicate(timeout=240)
    assert process.returncode == 130
    assert out == ""
    assert err.count("stopping after this step") == 1
    assert err.count(f"stopped; {HOW_ON} from the last checkpoint") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "run/manifest.json").exists()


def test_a_fault_of_the_user_is_one_line(tmp_path: Path) -> None:
    words = (*SHORT, "trainer.devices=2", "trainer.checkpoint.monitor=nonsense", "--output-dir", "run")
    code, out, err = finished(tmp_path, ("-m", "impresa", *words))
    assert (code, out) == (2, "")
    (line,) = faults(err)
    assert line.startswith(
        "trainer.checkpoint.monitor (training.checkpoint.monitor): no metric is called 'nonsense'; there are val_"
    )


def test_any_other_error_is_one_line_too_and_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("""
import os
if os.environ.get("RANK") == "1":
    import impresa.training.loop as loop
    def broken(*_):
        raise ValueError("no\\nluck")
    loop.train_step = broken
""")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    words = (*SHORT, "trainer.devices=2", "--output-dir", "run")
    (temporary := tmp_path / "temporary").mkdir()
    code, out, err = finished(tmp_path, ("-m", "impresa", *words), PYTHONPATH=path, TMPDIR=str(temporary))
    assert (code, out) == (2, "")
    (line,) = faults(err)
    found = re.fullmatch(
        r"process 1: ValueError: no luck \(traceback in (.*)\); there is no checkpoint yet, so start it anew", line
    )
    assert found, line
    trace = Path(found[1])
    assert "in broken" in trace.read_text()
    assert list(temporary.glob("impresa-*")) == [trace]  # none of the process that lost its connection


def test_torchrun_starts_the_same_run(tmp_path: Path, launched: tuple[Path, str, str]) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "impresa")
    code, out, err = finished(tmp_path, (*torchrun, *SHORT, "--output-dir", "run"))
    assert code == 0, err
    assert out.splitlines()[-1] == "run"
    same_as(tmp_path / "run", launched[0])


def test_slurm_starts_the_same_run(tmp_path: Path, launched: tuple[Path, str, str]) -> None:
    job = {"SLURM_JOB_ID": str(os.getpid() % 17_000), "SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "1"}
    job |= {"SLURM_NODELIST": "localhost", "SLURM_JOB_NAME": "train"}
    words = ("-m", "impresa", *SHORT, "--output-dir", "run", "trainer.devices=2")
    with started(tmp_path, words, **job, SLURM_PROCID="1", SLURM_LOCALID="1") as other:
        code, out, err = finished(tmp_path, words, **job, SLURM_PROCID="0", SLURM_LOCALID="0")
        assert code == 0, err
        assert other.communicate(timeout=240)[0] == ""
        assert other.returncode == 0
    assert out.splitlines()[-1] == "run"
    same_as(tmp_path / "run", launched[0])


def same_as(run_dir: Path, other: Path) -> None:
    ours, theirs = weights(run_dir), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert rows(run_dir) == rows(other)
