from __future__ import annotations

import pytest

from impresa.config.experiment import TrainerConfig
from impresa.config.types import LoggingConfig
from impresa.training.plan import Plan, make_plan


def plan(steps_per_epoch: int, total_steps: int, **intervals: int) -> Plan:
    return Plan(steps_per_epoch, total_steps, LoggingConfig(**intervals))


def due(test: object, total: int) -> list[int]:
    return [step for step in range(1, total + 1) if test(step)]  # type: ignore[operator]


def test_an_interval_counts_optimizer_steps_and_the_end_is_evaluated() -> None:
    p = plan(100, 250, eval_interval=60, save_interval=100)
    assert due(p.evaluates_after, 250) == [60, 120, 180, 240, 250]
    assert due(p.saves_after, 250) == [100, 200, 250]


def test_an_epoch_shorter_than_the_interval_is_evaluated_and_saved_too() -> None:
    p = plan(4, 12, eval_interval=1000, save_interval=5)
    assert due(p.evaluates_after, 12) == [4, 8, 12]
    assert due(p.saves_after, 12) == [4, 5, 8, 10, 12]


def test_logging_starts_with_the_first_step_and_ends_with_the_last() -> None:
    assert due(plan(100, 25, log_interval=10).logs_after, 25) == [1, 10, 20, 25]


def test_epochs_are_counted_from_zero_and_end_with_their_last_step() -> None:
    p = plan(4, 12)
    assert [p.epoch_of(step) for step in (0, 1, 4, 5, 12)] == [0, 0, 0, 1, 2]


@pytest.mark.parametrize(("batches", "accumulate", "steps"), [(6, 2, 3), (7, 2, 4), (1, 8, 1)])
def test_the_batches_left_at_the_end_of_an_epoch_make_a_step(batches: int, accumulate: int, steps: int) -> None:
    p = make_plan(TrainerConfig(epochs=3, accumulate_grad_batches=accumulate), batches)
    assert (p.steps_per_epoch, p.total_steps) == (steps, 3 * steps)


def test_max_steps_ends_a_run_early_and_never_lengthens_it() -> None:
    assert make_plan(TrainerConfig(epochs=2, max_steps=3), 10).total_steps == 3
    assert make_plan(TrainerConfig(epochs=2, max_steps=99), 10).total_steps == 20


def test_a_short_run_logs_every_step() -> None:
    short, long = (make_plan(TrainerConfig(epochs=1), batches) for batches in (199, 200))
    assert due(short.logs_after, 30) == list(range(1, 31))
    assert due(long.logs_after, 30) == [1, 10, 20, 30]
    settings = TrainerConfig(epochs=1, logging=LoggingConfig(log_interval=15))
    assert due(make_plan(settings, 200).logs_after, 30) == [1, 15, 30]
