"""Where the runs of a study are trained: as processes of this machine, or as jobs of a cluster by submitit."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from impresa.ablation.folder import LOGS, log_of
from impresa.ablation.plan import PlannedRun
from impresa.config.describe import did_you_mean, listed
from impresa.config.experiment import ExperimentConfig, TrainerConfig
from impresa.errors import ConfigError
from impresa.files import append
from impresa.run_dir.environment import num_cores

_OF_A_GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID")
"""Variables by which a process takes itself for one of several that train together; a run of a study is alone."""
_LONGEST_TAIL = 4096
SLURM_SETTINGS = {
    "partition": "slurm_partition",
    "account": "slurm_account",
    "qos": "slurm_qos",
    "constraint": "slurm_constraint",
    "time": "timeout_min",
    "gpus": "gpus_per_node",
    "cpus": "cpus_per_task",
    "memory": "mem_gb",
}
"""Settings of `--slurm`, with submitit's names; time is in minutes, memory in GB."""
_NUMBERS = ("time", "gpus", "cpus", "memory")


@dataclass(frozen=True)
class Ended:
    """How the training of a run has ended."""

    code: int | None
    """Exit code, negative for a signal; None where the cluster knows none."""
    reason: str
    """Of a failure: the last line that it printed, or what killed it."""


class Job(Protocol):
    """A run that is being trained."""

    def poll(self) -> Ended | None:
        """How it has ended; None while it goes on."""

    def stop(self) -> None:
        """Ask it to save its state and end."""

    def kill(self) -> None:
        """End it at once."""


class Launcher(Protocol):
    """Starts runs."""

    def start(self, run: PlannedRun, slot: int) -> Job:
        """Train a run, or go on with it, beside those in other slots (from 0)."""


class LocalLauncher:
    """Trains runs as processes of this machine, each with its share of the cores and of the GPUs.

    A process stops when this one has died, however that happened: it watches its standard input.

    Args:
        study_dir: folder of the study.
        command: what stands before the words of `impresa train`; the process must watch its standard input.
        num_jobs: runs at once.
    """

    def __init__(self, study_dir: Path, command: Sequence[str], num_jobs: int) -> None:
        self._study_dir = study_dir
        self._command = tuple(command)
        self._num_jobs = num_jobs
        self._gpus = visible_gpus()

    def start(self, run: PlannedRun, slot: int) -> Job:
        log, words = log_of(self._study_dir, run), train_words(self._study_dir, run)
        start = _begin_log(log, words)
        with log.open("ab") as output, _on_cores(self.cores(slot)):
            process = subprocess.Popen(
                [*self._command, *words],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment(run.config, slot),
                start_new_session=True,  # ctrl-c at the terminal reaches this process alone, which passes it on
            )
        return _Process(process, log, start)

    def cores(self, slot: int) -> set[int]:
        """The cores that a slot has to itself: runs that the system moves between cores slow each other.

        Empty where cores cannot be told apart, or are fewer than the runs.
        """
        usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        share = len(usable) // self._num_jobs
        return set(usable[slot * share : (slot + 1) * share])

    def environment(self, config: ExperimentConfig, slot: int) -> dict[str, str]:
        """The variables of a run's process."""
        env = {name: value for name, value in os.environ.items() if name not in _OF_A_GROUP}
        env["OMP_NUM_THREADS"] = str(threads_of(config, self._num_jobs))
        if gpus := _share(self._gpus, config.trainer, slot):
            env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        return env


@contextmanager
def _on_cores(cores: Set[int]) -> Iterator[None]:
    """Start processes on these cores alone; on any, where there are none. Of this process, only this thread moves."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class _Process:
    """A training process of this machine."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, start: int) -> None:
        self._process, self._log, self._start = process, log, start

    def poll(self) -> Ended | None:
        code = self._process.poll()
        if code is None:
            return None
        if self._process.stdin is not None:
            self._process.stdin.close()
        return Ended(code, _reason(code, self._log, self._start))

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        with suppress(ProcessLookupError):  # all of its session have ended
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class SubmititLauncher:
    """Trains runs as jobs of submitit's executor, which share a file system with this process.

    Args:
        study_dir: folder of the study.
        command: what stands before the words of `impresa train`.
        executor: of submitit, with its parameters set.
    """

    def __init__(self, study_dir: Path, command: Sequence[str], executor: Any) -> None:
        self._study_dir = study_dir.resolve()
        self._command = tuple(command)
        self._executor = executor

    def start(self, run: PlannedRun, slot: int) -> Job:
        log, words = log_of(self._study_dir, run), train_words(self._study_dir, run)
        start = _begin_log(log, words)
        training = TrainInJob((*self._command, *words), log, Path.cwd())
        return _ClusterJob(self._executor.submit(training), log, start)


class TrainInJob:
    """The work of a job. Ask it by SIGTERM or SIGINT, as `scancel` does, and the training saves its state."""

    def __init__(self, command: Sequence[str], log: Path, folder: Path) -> None:
        self.command, self.log, self.folder = tuple(command), log, folder
        self._process: subprocess.Popen[bytes] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_process": None}

    def __call__(self) -> int:
        env = {name: value for name, value in os.environ.items() if name not in _OF_A_GROUP}
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=self.folder,
            )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        return self._process.wait()

    def checkpoint(self) -> Any:
        """Called where the job is preempted or its time is nearly over: it is queued again, and then goes on."""
        from submitit.helpers import DelayedSubmission

        self._stop()
        if self._process is not None:  # not by `wait`, in whose midst this signal handler stands
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(self)

    def _stop(self, *_: object) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)


class _ClusterJob:
    """A job of submitit."""

    def __init__(self, job: Any, log: Path, start: int) -> None:
        self._job, self._log, self._start = job, log, start

    def poll(self) -> Ended | None:
        if not self._job.done():
            return None
        try:
            code: int = self._job.result()
        except Exception as error:  # the cluster has ended it: out of time, of memory, cancelled
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return Ended(None, f"job {self._job.job_id} ({self._job.state}): {lines[0]}")
        return Ended(code, _reason(code, self._log, self._start))

    def stop(self) -> None:
        self._job.cancel(check=False)

    kill = stop


def check_slurm(settings: Sequence[tuple[str, str]]) -> None:
    """Refuse to train by SLURM where that cannot be; nothing is written.

    Raises:
        ConfigError: submitit or SLURM is not there, or a setting is wrong.
    """
    slurm_parameters(settings)
    if find_spec("submitit") is None:
        raise ConfigError("--launcher: slurm needs submitit; pip install 'impresa[slurm]'")
    if shutil.which("srun") is None:
        raise ConfigError("--launcher: slurm is not here, there is no srun; start the command on a login node")


def slurm_executor(study_dir: Path, settings: Sequence[tuple[str, str]]) -> Any:
    """submitit's executor for SLURM.

    Args:
        study_dir: folder of the study.
        settings: names of `SLURM_SETTINGS` and their values; a later one replaces an earlier one.
    """
    import submitit

    executor = submitit.AutoExecutor(folder=study_dir.resolve() / LOGS / "slurm", cluster="slurm")
    executor.update_parameters(name="impresa", **slurm_parameters(settings))
    return executor


def slurm_parameters(settings: Sequence[tuple[str, str]]) -> dict[str, str | int]:
    """Settings of `--slurm` as submitit takes them; a `ConfigError` with a line for each that is wrong."""
    faults, found = list[str](), dict[str, str | int]()
    for name, value in settings:
        if name not in SLURM_SETTINGS:
            hint = did_you_mean(name, SLURM_SETTINGS)
            faults.append(f"--slurm: {name} is unknown; {hint}there are {listed(SLURM_SETTINGS, 'and')}")
        elif name in _NUMBERS and not (value.isdecimal() and int(value)):
            unit = {"time": " of minutes", "memory": " of GB"}.get(name, "")
            faults.append(f"--slurm: {name} is {value}; it must be a whole number{unit} from 1")
        else:
            found[SLURM_SETTINGS[name]] = int(value) if name in _NUMBERS else value
    if faults:
        raise ConfigError(*faults)
    return found


def train_words(study_dir: Path, run: PlannedRun) -> list[str]:
    """The words after `impresa` that train a run of a study, or go on with it."""
    return ["train", *run.words, "--output-dir", str(study_dir / run.folder), "--resume"]


def threads_of(config: ExperimentConfig, num_jobs: int) -> int:
    """Threads that a run computes with beside others: its share of the cores without those of its data workers.

    A smaller OMP_NUM_THREADS of the user counts. The number of jobs alone decides, not how many there are at the
    moment: the last runs of a study compute as the first ones did.
    """
    share = max(num_cores() // num_jobs - config.dataset.num_workers, 1)
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(wanted)) if wanted.isdecimal() and int(wanted) else share


def visible_gpus() -> list[str]:
    """Names of the NVIDIA GPUs for CUDA_VISIBLE_DEVICES, found without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    return [str(index) for index, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def _share(gpus: Sequence[str], trainer: TrainerConfig, slot: int) -> list[str]:
    """The GPUs of a slot: as many as the config asks for, one for `auto`; none where that is not to be said."""
    wanted = 1 if trainer.devices == "auto" else trainer.devices
    if trainer.accelerator == "cpu" or wanted > len(gpus):
        return []
    return [gpus[(slot * wanted + index) % len(gpus)] for index in range(wanted)]


def _begin_log(log: Path, words: Sequence[str]) -> int:
    """Write the command as the log's next line; returns where its output will begin, in bytes."""
    log.parent.mkdir(parents=True, exist_ok=True)
    append(log, f"$ impresa {shlex.join(words)}\n")
    return log.stat().st_size


def _reason(code: int, log: Path, start: int) -> str:
    """Why a training has failed: what killed it, or the last line that it printed."""
    if code == 0:
        return ""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"was killed by {name}" + (", as by a system that has no memory left" if name == "SIGKILL" else "")
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - _LONGEST_TAIL))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip() and not line.startswith(" ") and "Warning: " not in line]
        if said:
            return said[-1]
    return f"ended with exit code {code} and said nothing"
