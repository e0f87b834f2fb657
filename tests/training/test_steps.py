from __future__ import annotations

from collections.abc import Iterator

from impresa.config.experiment import LoggingConfig
from impresa.training.plan import Plan
from impresa.training.steps import StepLoader


class Epochs:
    """Five batches an epoch, each named after epoch and place, as the data module gives them."""

    def __init__(self, epoch: int = 0, first: int = 0) -> None:
        self.epoch, self.first = epoch, first

    def __iter__(self) -> Iterator[str]:
        epoch, first = self.epoch, self.first
        self.epoch, self.first = epoch + 1, 0
        for number in range(first, 5):
            yield f"{epoch}{'abcde'[number]}"


def segments(loader: StepLoader, number: int) -> list[list[str]]:
    return [["+".join(batches) for batches in loader] for _ in range(number)]  # type: ignore[arg-type]


def test_a_step_never_reaches_over_the_end_of_an_epoch() -> None:
    loader = StepLoader(Epochs(), Plan(3, 6, LoggingConfig()), accumulate=2, start=0)  # type: ignore[arg-type]
    assert segments(loader, 2) == [["0a+0b", "0c+0d", "0e"], ["1a+1b", "1c+1d", "1e"]]


def test_an_iteration_ends_where_a_validation_is_due() -> None:
    plan = Plan(3, 7, LoggingConfig(eval_interval=2))
    loader = StepLoader(Epochs(), plan, accumulate=2, start=0)  # type: ignore[arg-type]
    assert [len(part) for part in segments(loader, 4)] == [2, 2, 2, 1]


def test_a_resumed_run_sees_the_steps_that_were_left() -> None:
    plan = Plan(3, 9, LoggingConfig(eval_interval=4))
    whole = segments(StepLoader(Epochs(), plan, accumulate=2, start=0), 5)  # type: ignore[arg-type]
    resumed = StepLoader(Epochs(epoch=1, first=4), plan, accumulate=2, start=5)  # type: ignore[arg-type]
    assert [len(part) for part in whole] == [3, 1, 2, 2, 1]
    assert segments(resumed, 3) == [["1e"], *whole[3:]]
