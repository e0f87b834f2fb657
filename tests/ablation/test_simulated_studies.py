"""The test of the tests: verdicts on thousands of simulated studies, by the code that judges real ones.

Scores are normal with standard deviation 1; of the base and four variants unless said. A share of N studies is known to
within two standard errors, `noise(share, N)`, so a figure that must be at most x is checked against x plus that.
"""

from __future__ import annotations

import numpy as np
import pytest

from impresa.ablation.judging import Judged, judge
from impresa.ablation.power import power_of, smallest_difference

STUDIES = 12_000
FALSE_ALARMS = 0.05


def simulated(
    num_rows: int = 5,
    num_seeds: int = 5,
    *,
    correlation: float = 0.0,
    sd: dict[int, float] | None = None,
    effect: float = 0.0,
    num: int = STUDIES,
    generator: int = 0,
) -> np.ndarray:
    """Scores (N, V, S). `sd` of the rows that are not 1; `effect` is added to the first variant."""
    rng = np.random.default_rng([generator, num_rows, num_seeds])
    seeds, own = rng.standard_normal((num, 1, num_seeds)), rng.standard_normal((num, num_rows, num_seeds))
    scores = correlation**0.5 * seeds + (1 - correlation) ** 0.5 * own
    for row, factor in (sd or {}).items():
        scores[:, row] *= factor
    scores[:, 1:2] += effect
    return scores


def judged(scores: np.ndarray) -> Judged:
    return judge(scores, np.ones(scores.shape[1], dtype=bool))


def false_alarms(scores: np.ndarray) -> float:
    """Share of studies with a finding in any variant, where there is none."""
    return float(judged(scores).found.any(axis=1).mean())


def noise(share: float, num: int = STUDIES) -> float:
    return 2 * (share * (1 - share) / num) ** 0.5


@pytest.mark.parametrize("correlation", [0.0, 0.5])
@pytest.mark.parametrize("num_seeds", [5, 8])
def test_null_switches_are_seldom_called_different(num_seeds: int, correlation: float) -> None:
    assert false_alarms(simulated(num_seeds=num_seeds, correlation=correlation)) <= 0.055


@pytest.mark.parametrize("num_rows", [2, 3, 9])
def test_the_error_rate_is_that_of_all_variants_together(num_rows: int) -> None:
    assert false_alarms(simulated(num_rows, num=4000)) == pytest.approx(FALSE_ALARMS, abs=0.005 + noise(0.05, 4000))


@pytest.mark.parametrize("row", [0, 4], ids=["base", "variant"])
@pytest.mark.parametrize("num_seeds", [5, 8])
def test_null_switches_are_seldom_called_different_when_one_spreads_three_times_as_much(
    row: int, num_seeds: int
) -> None:
    num = 24_000 if num_seeds == 5 else 8_000
    scores = simulated(num_seeds=num_seeds, correlation=0.3, sd={row: 3.0}, num=num)
    assert false_alarms(scores) <= 0.07 + noise(0.07, num)


@pytest.mark.parametrize(
    ("num_rows", "num_seeds", "figure"),
    [(5, 3, 0.67), (5, 4, 0.86), (5, 5, 0.95), (5, 6, 0.98), (2, 5, 0.91)],
    ids=str,
)
def test_two_standard_deviations_are_found_as_often_as_known(num_rows: int, num_seeds: int, figure: float) -> None:
    found = judged(simulated(num_rows, num_seeds, correlation=0.5, effect=2.0, num=24_000)).found[:, 0].mean()
    assert abs(found - figure) <= 0.02 + noise(figure, 24_000)


@pytest.mark.parametrize(
    ("num_rows", "num_seeds", "correlation"),
    [(5, 5, 0.0), (5, 5, 0.5), (2, 5, 0.5), (3, 5, 0.0), (3, 8, 0.3), (9, 5, 0.5)],
)
def test_the_promised_power_is_kept(num_rows: int, num_seeds: int, correlation: float) -> None:
    num = 6000
    for effect in (1.3, smallest_difference(1.0, num_rows - 1, num_seeds, correlation)):
        scores = simulated(num_rows, num_seeds, correlation=correlation, effect=effect, num=num)
        promised = power_of(effect, num_rows - 1, num_seeds, correlation)
        assert judged(scores).found[:, 0].mean() == pytest.approx(promised, abs=0.02)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_intervals_cover_all_differences_together(correlation: float) -> None:
    result = judged(simulated(correlation=correlation))
    covered = ((result.lows <= 0) & (result.highs >= 0)).all(axis=1).mean()
    assert covered == pytest.approx(0.95, abs=0.015)


def test_intervals_and_verdicts_agree() -> None:
    result = judged(simulated(sd={4: 3.0}, effect=2.0))
    assert (result.apart.any(axis=1)).mean() > 0.3
    outside = (result.lows > 0) | (result.highs < 0)
    assert not (outside & ~result.found).any()
    assert ((result.lows >= 0) | (result.highs <= 0))[result.found].all()


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_a_control_on_other_seeds_is_no_more_often_called_different(correlation: float) -> None:
    """As a block among others it would be, in 4 to 6% of studies by itself: seeds matter, and its are others."""
    scores = simulated(correlation=correlation)
    scores[:, -1] = simulated(correlation=correlation, generator=1)[:, -1]
    found = judge(scores, np.array([True, True, True, True, False])).found
    assert found.any(axis=1).mean() <= 0.055
    assert found[:, -1].mean() <= 0.02


@pytest.mark.parametrize(
    "missing", [[(1, 0)], [(1, 0), (2, 1), (3, 2)], [(0, 5), (1, 0), (1, 1), (1, 2)]], ids=["one", "three", "base too"]
)
def test_missing_runs_make_no_false_alarms(missing: list[tuple[int, int]]) -> None:
    scores = simulated(num_seeds=6, correlation=0.5)
    for row, seed in missing:
        scores[:, row, seed] = np.nan
    assert false_alarms(scores) <= 0.055


@pytest.mark.parametrize("num_rows", [2, 5])
def test_skewed_scores_and_shares_near_one_make_no_more_false_alarms(num_rows: int) -> None:
    normal = simulated(num_rows, correlation=0.5)
    shares = np.random.default_rng(0).binomial(500, 1 / (1 + np.exp(-(4 + 0.3 * normal)))) / 500
    assert false_alarms(np.exp(normal)) <= 0.055
    assert false_alarms(shares) <= 0.055


def test_a_wild_variant_does_not_drown_the_others() -> None:
    scores = simulated(num_seeds=6, correlation=0.5, sd={4: 50.0}, effect=2.0)
    assert judged(scores).found[:, 0].mean() > 0.9
