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
from impresa.errors import ImpresaError, Requeue, TrainingError
from impresa.files import write_atomic
from impresa.run_dir.claim import how_to_go_on
from impresa.run_dir.environment import is_finished
from impresa.training.processes import BY_SCHEDULER, LAUNCHED, STUCK, can_handle_signals

logger = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.1
HANDLED = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, *BY_SCHEDULER)
"""Signals that torch's launcher takes over, and ours."""


def launch(
    config: ExperimentConfig, run_dir: Path, num_processes: int, *, command: Sequence[str], resume: bool
) -> None:
    """Train as `impresa.training.run.train` does, in so many processes. When one dies, the others are ended, and all
    are started again from the last checkpoint, `trainer.max_restarts` times; faults of the user are not tried again."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # `_cause` says it in one line
    for left in reversed(range(config.trainer.max_restarts + 1)):
        stops: list[int] = []
        fault = _run_group(config, run_dir, num_processes, command=command, resume=resume, stops=stops)
        if set(stops) & set(BY_SCHEDULER):
            raise Requeue
        if fault is None:
            break
        if isinstance(fault, _ProcessError) and left and not stops:
            logger.warning(f"{fault}; starting all again ({left - 1} restarts are left after this one)")
            resume = True
            continue
        if isinstance(fault, _ProcessError):
            raise TrainingError(f"{fault}; {how_to_go_on(run_dir, config)}")
        raise fault
    if not is_finished(run_dir):
        raise KeyboardInterrupt


def _run_group(
    config: ExperimentConfig,
    run_dir: Path,
    num_processes: int,
    *,
    command: Sequence[str],
    resume: bool,
    stops: list[int],
) -> ImpresaError | None:
    """Train in processes that are started once; returns why it failed. `stops` gets the signals that came meanwhile."""
    with tempfile.TemporaryDirectory(prefix="impresa-") as folder:
        settings = write_atomic(Path(folder) / "config.yaml", to_yaml(config))
        words = (*("-m", "impresa.training.worker", settings, run_dir, "resume" if resume else "new"), *command)
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # at any port that is free
        with _signal_handlers_restored(), _stops_of_torch():
            processes = start_processes(
                name="impresa",
                entrypoint=sys.executable,
                args=dict.fromkeys(range(num_processes), words),
                envs={rank: _environment(rank, num_processes, store.port) for rank in range(num_processes)},
                logs_specs=DefaultLogsSpecs(log_dir=folder),
            )
            try:
                _forward_stops(processes, stops)
                result = processes.wait(period=POLL_INTERVAL_S)
            finally:
                processes.close()
    assert result is not None
    return _cause(list(result.failures.values())) if result.is_failed() else None


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


@contextmanager
def _stops_of_torch() -> Iterator[None]:
    """Raise what torch's launcher does for a signal as ours: the terminal was closed, or any signal while processes are
    being started."""
    try:
        yield
    except SignalException as stop:
        raise (Requeue if stop.sigval in BY_SCHEDULER else KeyboardInterrupt) from None


def _forward_stops(processes: PContext, stops: list[int]) -> None:
    """Send Ctrl-C and a scheduler's signals to the processes, which torch starts in sessions of their own: they end
    their step and save. SIGTERM, by which torch ends them, goes as Ctrl-C."""

    def forward(number: int, frame: object) -> None:
        stops.append(number)
        for pid in processes.pids().values():
            with suppress(ProcessLookupError):  # it has ended already
                os.kill(pid, signal.SIGINT if number == signal.SIGTERM else number)

    if can_handle_signals():
        for number in (signal.SIGINT, *BY_SCHEDULER):
            signal.signal(number, forward)


class _ProcessError(ImpresaError):
    """A process has ended by no fault of the user's: it may go well another time."""


def _cause(failures: Sequence[ProcessFailure]) -> ImpresaError:
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
        with tempfile.NamedTemporaryFile(prefix="impresa-", suffix=".txt", delete=False) as file:
            file.write(report["trace"].encode(errors="backslashreplace"))
        return _ProcessError(f"process {reported[0].local_rank}: {report['lines'][0]} (traceback in {file.name})")
    failure = (killed or [other for other in failures if other.exitcode == STUCK] or failures)[0]
    end = (
        f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else f"ended with exit code {failure.exitcode}"
    )
    if failure.exitcode == STUCK:
        end = "made no step for too long (trainer.timeout_minutes); where each stood is printed above"
    return _ProcessError(f"process {failure.local_rank} {end}")
