from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from impresa.training.loop import steps_of


class Epochs:
    """Five batches an epoch, each named after epoch and place, as the training data give them."""

    def __init__(self, epoch: int = 0, first: int = 0) -> None:
        self.epoch, self.first = epoch, first

    def __iter__(self) -> Iterator[str]:
        epoch, first = self.epoch, self.first
        self.epoch, self.first = epoch + 1, 0
        for number in range(first, 5):
            yield f"{epoch}{'abcde'[number]}"


def steps(data: Epochs, number: int, accumulate: int = 2) -> list[str]:
    return ["+".join(batches) for batches in islice(steps_of(data, accumulate), number)]


def test_a_step_never_reaches_over_the_end_of_an_epoch() -> None:
    assert steps(Epochs(), 6) == ["0a+0b", "0c+0d", "0e", "1a+1b", "1c+1d", "1e"]
    assert steps(Epochs(), 3, accumulate=9) == ["0a+0b+0c+0d+0e", "1a+1b+1c+1d+1e", "2a+2b+2c+2d+2e"]


def test_no_batch_is_taken_before_its_step() -> None:
    taken: list[int] = []

    def batches() -> Iterator[int]:
        for number in range(6):
            taken.append(number)
            yield number

    found = steps_of(batches(), 2)
    assert next(found) == taken == [0, 1]


def test_a_resumed_run_sees_the_steps_that_were_left() -> None:
    assert steps(Epochs(epoch=1, first=4), 4) == steps(Epochs(), 9)[5:]
