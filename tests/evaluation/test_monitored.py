from __future__ import annotations

import math

import pytest

from impresa.evaluation.monitored import Mode, monitored


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_the_best_is_the_first_of_the_best(mode: Mode, sign: int) -> None:
    found = monitored(mode, [(step, sign * value) for step, value in ((3, 2.0), (6, 1.0), (9, 1.5), (12, 1.0))])
    assert (found.best_step, found.num_since) == (6, 2)


def test_a_value_that_is_nan_is_worse_than_any() -> None:
    assert monitored("max", [(1, math.nan), (2, -5.0), (3, math.nan)]).best_step == 2
    assert monitored("min", [(1, math.nan), (2, math.nan)]).num_since == 1


def test_worse_for_more_than_a_third_of_the_run() -> None:
    points = [(step, 1.0 if step == 40 else 2.0) for step in range(10, 75, 10)]
    assert not monitored("min", points).is_worse_for_long(90)  # 30 steps are a third
    assert monitored("min", [*points, (71, 2.0)]).is_worse_for_long(90)
    assert not monitored("min", [*points, (71, 1.0)]).is_worse_for_long(90)  # as good again


def test_a_plateau_at_the_best_is_not_worse() -> None:
    found = monitored("max", [(step, min(step, 3) / 3) for step in range(1, 20)])
    assert found.best_step == 3
    assert not found.is_worse_for_long(19)
    assert found.num_since == 16
    assert not monitored("max", []).is_worse_for_long(9)
