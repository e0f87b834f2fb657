"""Trains the runs of a study: those that have finished are kept, half-done ones go on, failed ones are named."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from impresa.ablation.folder import is_done, log_of
from impresa.ablation.launchers import Ended, Job, Launcher
from impresa.ablation.plan import PlannedRun
from impresa.ablation.study import BASE
from impresa.errors import USER_ERROR, CheckpointError, TrainingError
from impresa.foreign_text import printable
from impresa.run_dir.layout import METRICS
from impresa.run_dir.lock import refuse_running
from impresa.training.processes import GracefulStop, TrainingInterrupted

POLL_S = 0.2
STOPPING = "stopping: the runs end their step and save; once more to stop at once"


@dataclass(frozen=True)
class Running:
    """A run that is being trained."""

    run: PlannedRun
    job: Job
    slot: int
    since: float
    """`time.monotonic()` at its start."""


class View(Protocol):
    """Shows how a study gets on."""

    def started(self, run: PlannedRun) -> None: ...

    def finished(self, run: PlannedRun, seconds: float | None) -> None:
        """A run has finished, in so many seconds; None where somebody else has trained it meanwhile."""

    def failed(self, run: PlannedRun, reason: str) -> None: ...

    def waiting(self, reason: str) -> None:
        """No run can be started, as `reason` says."""

    def tick(self, running: Sequence[Running], num_waiting: int) -> None:
        """Called several times a second."""


def label(run: PlannedRun) -> str:
    """The run for people."""
    return f"{run.variant.name}, seed {run.seed}"


def different(planned: Sequence[PlannedRun], num_pilot: int = 0) -> list[PlannedRun]:
    """The runs to train, each folder once, in the order in which they are started.

    That is the order of `plan`, but with the first `num_pilot` seeds of the base before all others.
    """
    pilot = pilot_of(planned, num_pilot)
    by_folder: dict[str, PlannedRun] = {}
    for run in (*pilot, *planned):
        by_folder.setdefault(run.folder, run)
    return list(by_folder.values())


def pilot_of(planned: Sequence[PlannedRun], num_seeds: int) -> list[PlannedRun]:
    """The runs of the base with the first so many seeds."""
    return [run for run in planned if run.variant.name == BASE][:num_seeds]


@dataclass(frozen=True)
class Standing:
    """How far the runs of a study have come."""

    done: list[PlannedRun]
    to_do: list[PlannedRun]
    damaged: dict[str, str]
    """By the folder of a run that has finished and is not as it was then, what is wrong."""


def standing_of(runs: Sequence[PlannedRun], study_dir: Path | None) -> Standing:
    """Look at the folders of runs; without a folder of the study nothing is there."""
    found = Standing([], [], {})
    for run in runs:
        try:
            is_there = study_dir is not None and is_done(study_dir / run.folder)
            (found.done if is_there else found.to_do).append(run)
        except CheckpointError as error:
            found.damaged[run.folder] = _damage(error)
    return found


class StudyRunner:
    """Trains runs, several at once, until each has finished or failed.

    Args:
        study_dir: folder of the study, which is ours.
        launcher: starts a run.
        view: is told what happens.
        num_jobs: runs at once.
        any_done: a run of the study has finished before.
    """

    def __init__(self, study_dir: Path, launcher: Launcher, view: View, *, num_jobs: int, any_done: bool) -> None:
        self.failures: dict[str, str] = {}
        """Why runs have failed, by folder."""
        self._study_dir, self._launcher, self._view = study_dir, launcher, view
        self._num_jobs, self._has_finished = num_jobs, any_done
        self._waiting: list[PlannedRun] = []
        self._running: list[Running] = []

    def train(self, runs: Sequence[PlannedRun]) -> None:
        """Train runs that have not finished, in this order.

        Raises:
            TrainingError: the first run has failed before its first step by a fault that all others share.
            KeyboardInterrupt: the user stopped the study; what was trained is saved.
        """
        self._waiting = list(runs)
        with GracefulStop(STOPPING) as stop:
            try:
                while self._waiting or self._running:
                    self._start_runs()
                    time.sleep(POLL_S)
                    for running in list(self._running):
                        if (ended := running.job.poll()) is not None:
                            self._running.remove(running)
                            self._take(running, ended)
                    self._view.tick(self._running, len(self._waiting))
                    if stop.requested:
                        raise KeyboardInterrupt
            except TrainingInterrupted:
                raise KeyboardInterrupt from None
            finally:
                self._end_all()

    def _start_runs(self) -> None:
        """Fill the free slots with runs that nobody else trains."""
        reason = ""
        for run in list(self._waiting):
            if len(self._running) >= self._num_jobs:
                return
            run_dir = self._study_dir / run.folder
            try:
                refuse_running(run_dir)
            except CheckpointError as error:
                reason = error.lines[0].partition(";")[0]
                continue
            self._waiting.remove(run)
            if self._is_done(run):  # another has trained it since we looked
                self._view.finished(run, None)
                continue
            if run.folder in self.failures:  # and it is damaged
                continue
            slot = min(set(range(self._num_jobs)) - {running.slot for running in self._running})
            job = self._launcher.start(run, slot)
            self._running.append(Running(run, job, slot, time.monotonic()))
            self._view.started(run)
        if reason and not self._running:
            self._view.waiting(f"{reason}; waiting for it")

    def _take(self, running: Running, ended: Ended) -> None:
        """Book a run that has ended."""
        run, run_dir = running.run, self._study_dir / running.run.folder
        if self._is_done(run):
            self._has_finished = True
            self._view.finished(run, time.monotonic() - running.since)
            return
        if run.folder in self.failures:  # damaged, which was said
            return
        try:
            refuse_running(run_dir)
        except CheckpointError:  # another was quicker
            self._waiting.append(run)
            return
        reason = printable(ended.reason) or "ended before it had finished"
        is_shared = ended.code == USER_ERROR and not (run_dir / METRICS).exists()
        if is_shared and not self._has_finished and not self.failures:
            fault = f"{label(run)}: {reason}"
            log = log_of(self._study_dir, run)
            raise TrainingError(f"{fault} (it failed before its first step, and so would all others; log: {log})")
        self._fail(run, reason)

    def _is_done(self, run: PlannedRun) -> bool:
        """True for a run that has finished; one that has and is damaged is a failure."""
        try:
            return is_done(self._study_dir / run.folder)
        except CheckpointError as error:
            self._fail(run, _damage(error))
            return False

    def _fail(self, run: PlannedRun, reason: str) -> None:
        self.failures[run.folder] = reason
        self._view.failed(run, reason)

    def _end_all(self) -> None:
        """End what is still being trained: its state is saved first, unless the user insists."""
        try:
            for running in self._running:
                running.job.stop()
            while any(running.job.poll() is None for running in self._running):
                time.sleep(POLL_S)
        except TrainingInterrupted:
            pass
        finally:
            for running in self._running:
                if running.job.poll() is None:
                    running.job.kill()


def failed_lines(runs: Sequence[PlannedRun], failures: Mapping[str, str], study_dir: Path) -> list[str]:
    """A line for each failed run."""
    return [
        f"failed: {label(run)}: {failures[run.folder]}; log: {log_of(study_dir, run)}"
        for run in runs
        if run.folder in failures
    ]


def _damage(error: CheckpointError) -> str:
    return f"{printable(error.lines[0]).partition(';')[0]}; delete the run's folder, and it is trained anew"
