"""The power of a study against simulated figures, and what is known of spread before it runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from impresa.ablation.dunnett import critical_value
from impresa.ablation.power import power_of, smallest_difference, spread_of

NAN = float("nan")


@pytest.mark.parametrize(
    ("num_variants", "num_seeds", "power"), [(4, 3, 0.67), (4, 4, 0.86), (4, 5, 0.95), (4, 6, 0.98), (1, 5, 0.91)]
)
def test_power_is_that_of_simulated_studies(num_variants: int, num_seeds: int, power: float) -> None:
    assert power_of(2.0, num_variants, num_seeds, 0.5) == pytest.approx(power, abs=0.02)


@pytest.mark.parametrize("num_variants", [1, 2, 4, 8])
@pytest.mark.parametrize("num_seeds", [2, 3, 5, 10, 50])
def test_the_smallest_difference_has_the_power_asked_for(num_variants: int, num_seeds: int) -> None:
    found = smallest_difference(0.014, num_variants, num_seeds, 0.4, power=0.9)
    assert power_of(found / 0.014, num_variants, num_seeds, 0.4) == pytest.approx(0.9, abs=1e-4)


def test_more_seeds_and_shared_luck_find_smaller_differences() -> None:
    five = smallest_difference(1.0, 4, 5)
    assert smallest_difference(1.0, 4, 10) < five
    assert smallest_difference(1.0, 4, 5, 0.5) == pytest.approx(five * math.sqrt(0.5))
    assert smallest_difference(1.0, 8, 5) != five
    assert smallest_difference(1.0, 1, 5, num_controls=1) > smallest_difference(1.0, 1, 5)
    assert smallest_difference(0.0, 4, 5) == 0


@pytest.mark.parametrize(("num_variants", "num_seeds", "effect"), [(1, 2, 3.0), (1, 5, 2.0), (4, 4, 2.0), (8, 3, 1.0)])
def test_power_of_plain_dunnett_is_the_noncentral_t(num_variants: int, num_seeds: int, effect: float) -> None:
    df = num_variants * (num_seeds - 1)
    bound, shift = critical_value(num_variants, df), effect / math.sqrt(2 / num_seeds)
    reference = stats.nct.sf(bound, df, shift) + stats.nct.cdf(-bound, df, shift)
    assert power_of(effect, num_variants, num_seeds) == pytest.approx(reference, abs=1e-6)


def test_one_seed_finds_nothing() -> None:
    assert smallest_difference(1.0, 4, 1) == math.inf
    assert power_of(3.0, 4, 1) == 0


def test_base_runs_alone_give_a_spread_without_correlation() -> None:
    spread = spread_of(np.array([[0.7, 0.72, 0.71, 0.69, 0.73]]))
    assert spread is not None
    assert (spread.sd, spread.seed_correlation, spread.df) == (pytest.approx(0.0158114, rel=1e-4), 0.0, 4)


def test_finished_runs_give_a_correlation_when_they_are_enough() -> None:
    base = np.array([0.70, 0.72, 0.71, 0.69, 0.73])
    values = np.stack([base, base + 0.1, [0.5, NAN, NAN, NAN, NAN]])
    spread = spread_of(values)
    assert spread is not None
    assert (spread.seed_correlation, spread.df) == (pytest.approx(1), 8)
    few = spread_of(values[:, :4])
    assert few is not None
    assert few.seed_correlation == 0
    opposite = spread_of(np.stack([base, -base]))
    assert opposite is not None
    assert opposite.seed_correlation == 0


def test_no_spread_without_two_runs_of_a_variant() -> None:
    assert spread_of(np.array([[0.7, NAN], [NAN, math.inf]])) is None
