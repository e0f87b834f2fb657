"""Start several processes on this machine that train together, with torch's own launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, PContext, start_processes
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from impresa import errors
from impresa.config import ExperimentConfig, to_yaml
from impresa.errors import ImpresaError, TrainingError
from impresa.files import write_atomic
from impresa.run_dir.claim import how_to_go_on
from impresa.run_dir.environment import is_finished
from impresa.training.processes import LAUNCHED, can_handle_signals

POLL_INTERVAL_S = 0.1
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that torch's launcher takes over."""


def launch(
    config: ExperimentConfig, run_dir: Path, num_processes: int, *, command: Sequence[str], resume: bool
) -> None:
    """Train as `impresa.training.run.train` does, in so many processes. When one dies, the others are ended."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # `_cause` says it in one line
    with tempfile.TemporaryDirectory(prefix="impresa-") as folder:
        settings = write_atomic(Path(folder) / "config.yaml", to_yaml(config))
        words = (*("-m", "impresa.training.worker", settings, run_dir, "resume" if resume else "new"), *command)
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # at any port that is free
        with _signal_handlers_restored():
            processes = start_processes(
                name="impresa",
                entrypoint=sys.executable,
                args=dict.fromkeys(range(num_processes), words),
                envs={rank: _environment(rank, num_processes, store.port) for rank in range(num_processes)},
                logs_specs=DefaultLogsSpecs(log_dir=folder),
            )
            try:
                _forward_stops(processes)
                result = processes.wait(period=POLL_INTERVAL_S)
            except SignalException:  # the terminal was closed
                raise KeyboardInterrupt from None
            finally:
                processes.close()
    assert result is not None
    if result.is_failed():
        raise _cause(list(result.failures.values()), how_to_go_on(run_dir, config))
    if not is_finished(run_dir):
        raise KeyboardInterrupt


def _environment(rank: int, num_processes: int, port: int) -> dict[str, str]:
    """torchrun's variables for a process, which shares the cores with the others."""
    threads = max((os.cpu_count() or 1) // num_processes, 1)
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        LAUNCHED: "1",
    }


@contextmanager
def _signal_handlers_restored() -> Iterator[None]:
    """torch's launcher leaves its signal handlers behind."""
    before = {number: signal.getsignal(number) for number in HANDLED}
    try:
        yield
    finally:
        if can_handle_signals():
            for number, handler in before.items():
                signal.signal(number, handler)


def _forward_stops(processes: PContext) -> None:
    """Send Ctrl-C to the processes, which torch starts in sessions of their own: they end their step and save."""

    def forward(number: int, frame: object) -> None:
        for pid in processes.pids().values():
            with suppress(ProcessLookupError):  # it has ended already
                os.kill(pid, signal.SIGINT)

    if can_handle_signals():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, forward)


def _cause(failures: Sequence[ProcessFailure], how_on: str) -> ImpresaError:
    """The failure that the others followed from, in one line: when a process dies, the others lose their connection."""
    reported = [failure for failure in failures if "lines" in failure.error_file_data]
    # Errors of the user first, then the earliest.
    reported.sort(key=lambda failure: (failure.error_file_data["kind"] is None, failure.error_file_data["time"]))
    report = reported[0].error_file_data if reported else {}
    if report.get("kind"):
        kind: type[ImpresaError] = getattr(errors, report["kind"])
        return kind(*report["lines"])
    killed = [failure for failure in failures if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM]
    if reported and not killed:
        return TrainingError(f"process {reported[0].local_rank}: {report['lines'][0]}; {how_on}")
    failure = (killed or failures)[0]
    signalled = failure.exitcode < 0
    end = f"was killed by {failure.signal_name()}" if signalled else f"ended with exit code {failure.exitcode}"
    return TrainingError(f"process {failure.local_rank} {end}; {how_on}")
