from __future__ import annotations

import logging
import math

import pytest

from impresa.config.experiment import LoggingConfig, OptimizationConfig, SchedulerName
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
