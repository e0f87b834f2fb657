"""Signals of a user and of a scheduler: the run saves, says how to go on, and ends with a code that can be acted on."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from impresa.cli.main import main
from impresa.errors import INTERRUPTED, REQUEUE, Requeue
from impresa.run_dir.layout import WEIGHTS
from impresa.training.checkpoints import read_checkpoint
from impresa.training.logs import Recorder
from impresa.training.processes import LAUNCHED, GracefulStop
from impresa.training.run import train
from impresa.training.worker import heed_launcher
from killed import in_child, train_in_child
from tiny_run import TINY, tiny_experiment

SHORT = (*TINY, "trainer.checkpoint.save_top_k=0")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run that nobody stops."""
    run = tmp_path_factory.mktemp("straight") / "run"
    assert train_in_child(tiny_experiment("trainer.checkpoint.save_top_k=0"), run) == 0
    return (run / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("numbers", "workers", "code"),
    [
        ((signal.SIGTERM,), 0, REQUEUE),
        ((signal.SIGTERM,), 1, REQUEUE),
        ((signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM), 1, REQUEUE),  # SLURM's warning, again, and then in earnest
        ((signal.SIGUSR2,), 0, REQUEUE),
        ((signal.SIGINT,), 0, INTERRUPTED),
    ],
)
def test_a_signal_saves_and_ends_with_its_code_and_the_run_goes_on(
    *,
    numbers: tuple[int, ...],
    workers: int,
    code: int,
    straight: bytes,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Whether it reaches the main process alone or its data workers too, as SLURM's do."""
    pytest.importorskip("lancedb")  # it begins a thread in every new process, which signals reach as well
    run = tmp_path / "run"

    def train() -> int:
        record = Recorder.train
        os.setpgid(0, 0)

        def signalled(self: Recorder, at: int, *rest: Any) -> None:
            for number in numbers if at == 4 else ():
                # From elsewhere, for a worker takes its parent's SIGTERM for the end of the data.
                subprocess.run(["kill", f"-{number}", "--", f"-{os.getpgid(0)}"], check=False)
                time.sleep(0.2 * workers)  # in which a worker could die, and end this step
            record(self, at, *rest)

        Recorder.train = signalled  # type: ignore[method-assign]
        return main(["train", "shapes", *SHORT, f"dataset.num_workers={workers}", "--output-dir", str(run)])

    assert in_child(train) == code
    said = capfd.readouterr().err
    assert said.count("stopping after this step") == 1
    assert f"stopped; `impresa train --output-dir {run} --resume` continues from the last checkpoint" in said
    assert read_checkpoint(run / "checkpoints/last.ckpt")["step"] == 4
    assert train_in_child(tiny_experiment("trainer.checkpoint.save_top_k=0"), run) == 0
    assert (run / WEIGHTS).read_bytes() == straight


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("impresa.config.runs.prepare", ""),
        ("impresa.training.run.build_parts", "stopped; there is no checkpoint yet, so start it anew\n"),
    ],
)
def test_a_scheduler_s_signal_while_a_run_loads_may_be_queued_again(
    where: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(where, lambda *_, **__: os.kill(os.getpid(), signal.SIGUSR1))
    assert main(["train", "shapes", *SHORT, "--output-dir", str(tmp_path / "run")]) == REQUEUE
    assert capsys.readouterr().err.endswith(said)
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_a_second_signal_may_come_while_a_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, close = Recorder.train, Recorder.close

    def signalled(self: Recorder, *given: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        record(self, *given)

    def closing(self: Recorder, *, success: bool) -> None:
        close(self, success=success)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Recorder, "train", signalled)
    monkeypatch.setattr(Recorder, "close", closing)
    assert main(["train", "shapes", *SHORT, "--output-dir", str(tmp_path / "run")]) == REQUEUE


def test_warnings_may_come_as_often_as_they_like() -> None:
    with GracefulStop() as stop:
        for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.is_of_scheduler


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="where signals tell who has sent them")
@pytest.mark.parametrize(("sender", "code"), [("its launcher", -signal.SIGTERM), ("a scheduler", 0)])
def test_a_process_that_was_launched_saves_when_a_whole_job_is_to_end(
    sender: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LAUNCHED, "1")
    reading, writing = os.pipe()

    def rank() -> bool:
        heed_launcher()
        with GracefulStop() as stop:
            os.write(writing, f"{os.getpid()}".encode())
            end = time.monotonic() + 120
            while not stop.requested and time.monotonic() < end:
                time.sleep(0.05)
        return not stop.is_of_scheduler

    def start() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # lancedb begins a thread in what is forked
        ended.append(in_child(rank))

    ended: list[int] = []
    launched = threading.Thread(target=start)
    launched.start()
    pid = int(os.read(reading, 20))
    if sender == "its launcher":
        os.kill(pid, signal.SIGTERM)
    else:
        subprocess.run(["kill", f"{pid}"], check=True)
    launched.join()
    assert ended == [code]
    os.close(reading)
    os.close(writing)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="where signals tell who has sent them")
def test_a_process_that_was_launched_may_be_suspended() -> None:
    reading, writing = os.pipe()

    def rank() -> bool:
        heed_launcher()
        with GracefulStop() as stop:
            os.write(writing, f"{os.getpid()}".encode())
            time.sleep(4)
        return stop.requested

    ended: list[int] = []
    launched = threading.Thread(target=lambda: ended.append(in_child(rank)))
    launched.start()
    pid = int(os.read(reading, 20))
    for _ in range(2):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(1.2)
        os.kill(pid, signal.SIGCONT)
    launched.join()
    assert ended == [0]
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(("number", "end"), [(signal.SIGTERM, Requeue), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_while_processes_are_started_is_no_traceback(
    number: int, end: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext

    monkeypatch.setattr(SubprocessContext, "_start", lambda *_: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    with pytest.raises(end) as told:
        train(tiny_experiment("trainer.devices=2"), tmp_path / "run", command=[])
    assert told.type is end
    assert signal.getsignal(number) == before
