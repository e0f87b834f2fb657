from __future__ import annotations

import logging
import math

import pytest

from impresa.config.optimization import OptimizationConfig, SchedulerName
from impresa.config.types import LoggingConfig
from impresa.training.plan import Plan
from impresa.training.schedule import Schedule, make_schedule


def rates(kind: SchedulerName, total: int = 10, warmup: int = 4, min_lr: float = 0.1) -> list[float]:
    schedule = Schedule(kind, total, warmup, min_lr)
    return [schedule.learning_rate(step, peak=1.0) for step in range(1, total + 1)]


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_the_warm_up_is_a_line_that_ends_at_the_peak(kind: SchedulerName) -> None:
    assert rates(kind)[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_cosine_falls_to_the_minimum_at_the_last_step() -> None:
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * k / 6)) / 2 for k in range(1, 7)]
    assert rates("cosine")[4:] == pytest.approx(expected)
    assert rates("cosine")[-1] == pytest.approx(0.1)


def test_linear_falls_evenly_to_the_minimum() -> None:
    assert rates("linear")[4:] == pytest.approx([0.85, 0.7, 0.55, 0.4, 0.25, 0.1])


def test_constant_stays() -> None:
    assert rates("constant")[4:] == [1.0] * 6


def test_a_cooldown_is_a_line_at_the_end_of_a_constant_rate() -> None:
    schedule = Schedule("const_cooldown", 10, 2, 0.1, cooldown_steps=3)
    found = [schedule.learning_rate(step, peak=1.0) for step in range(1, 11)]
    assert found == pytest.approx([0.5, *[1.0] * 6, 0.7, 0.4, 0.1])
    assert schedule.learning_rate(9, peak=0.05) == 0.05  # below the minimum it stays


def test_without_a_cooldown_it_is_constant_and_with_one_as_long_as_the_run_linear() -> None:
    def of(cooldown: int) -> list[float]:
        schedule = Schedule("const_cooldown", 10, 4, 0.1, cooldown)
        return [schedule.learning_rate(step, peak=1.0) for step in range(1, 11)]

    assert of(0) == rates("constant")
    assert of(6) == rates("linear")


def test_a_longer_run_stays_constant_for_longer() -> None:
    config = OptimizationConfig(scheduler="const_cooldown", warmup_epochs=1, cooldown_epochs=2.5)
    short, long = (make_schedule(config, Plan(4, 4 * epochs, LoggingConfig())) for epochs in (5, 8))
    assert (short.cooldown_steps, long.cooldown_steps) == (10, 10)
    assert short.learning_rate(15, 1.0) < 1
    assert [long.learning_rate(step, 1.0) for step in range(4, 23)] == [1.0] * 19
    resumed = make_schedule(config, Plan(4, 32, LoggingConfig()), warmup_steps=3)
    assert (resumed.warmup_steps, resumed.cooldown_steps) == (3, 10)


def test_a_cooldown_that_does_not_fit_is_cut_with_a_notice(caplog: pytest.LogCaptureFixture) -> None:
    config = OptimizationConfig(scheduler="const_cooldown", warmup_steps=5, cooldown_epochs=9)
    schedule = make_schedule(config, Plan(4, 20, LoggingConfig()))
    assert schedule.cooldown_steps == 15
    assert caplog.messages == [
        "optimization.cooldown_epochs: a cooldown of 36 steps does not fit behind the warm-up in a run of 20; cut to 15"
    ]


def test_steps_of_warm_up_take_the_place_of_epochs(caplog: pytest.LogCaptureFixture) -> None:
    plan = Plan(20, 200, LoggingConfig())
    assert make_schedule(OptimizationConfig(warmup_epochs=2, warmup_steps=7), plan).warmup_steps == 7
    assert make_schedule(OptimizationConfig(warmup_steps=0), plan).warmup_steps == 0
    assert make_schedule(OptimizationConfig(warmup_steps=200), plan).warmup_steps == 20
    assert caplog.messages == ["optimization.warmup_steps: a warm-up of 200 steps does not fit a run of 200; cut to 20"]


def test_without_warm_up_the_first_step_is_already_on_the_way_down() -> None:
    assert rates("linear", total=2, warmup=0, min_lr=0.0) == pytest.approx([0.5, 0.0])


def test_a_peak_below_the_minimum_is_not_raised_to_it() -> None:
    assert Schedule("cosine", 10, 0, min_lr=0.5).learning_rate(7, peak=0.2) == pytest.approx(0.2)


def test_warm_up_counts_epochs_of_optimizer_steps() -> None:
    plan = Plan(20, 200, LoggingConfig())
    assert make_schedule(OptimizationConfig(warmup_epochs=1.5), plan).warmup_steps == 30


@pytest.mark.parametrize(("total", "epochs", "left"), [(20, 5, 2), (100, 5, 10), (1, 5, 0), (40, 1, 4)])
def test_a_warm_up_that_does_not_fit_is_cut_with_a_notice(
    total: int, epochs: float, left: int, caplog: pytest.LogCaptureFixture
) -> None:
    plan = Plan(total, total, LoggingConfig())
    with caplog.at_level(logging.WARNING):
        schedule = make_schedule(OptimizationConfig(warmup_epochs=epochs), plan)
    assert schedule.warmup_steps == left
    assert "warmup_epochs" in caplog.text
    assert f"cut to {left}" in caplog.text
    assert schedule.learning_rate(total, 1.0) == pytest.approx(1e-6, abs=1e-9)
