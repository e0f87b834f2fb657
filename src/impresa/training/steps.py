"""The training data as a stream of optimizer steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from impresa.tasks.alignment.batch import Batch
from impresa.training.plan import Plan


class StepLoader:
    """Iterating it once gives the optimizer steps up to the next validation; each is the list of its batches.

    That stretch is what Lightning takes for an epoch. Batches are never added up over the border of two epochs of the
    data: the last step of an epoch has what is left.

    Args:
        loader: iterating it gives what is left of an epoch of the data; iterating it again gives the next epoch.
        plan: the run.
        accumulate: batches of one step.
        start: optimizer steps already done, when a run is resumed.
    """

    def __init__(self, loader: Iterable[Batch], plan: Plan, accumulate: int, start: int) -> None:
        self._plan = plan
        self._yielded = start
        self._steps = _steps(loader, accumulate)

    def __iter__(self) -> Iterator[list[Batch]]:
        stop = self._plan.next_evaluation(self._yielded)
        while self._yielded < stop:
            self._yielded += 1
            yield next(self._steps)


def _steps(loader: Iterable[Batch], accumulate: int) -> Iterator[list[Batch]]:
    while True:
        batches = iter(loader)
        while group := list(islice(batches, accumulate)):
            yield group
