"""Verdicts on single studies: against scipy and textbook formulas, with missing runs, and where nothing varies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from impresa.ablation.dunnett import critical_value, probability_within
from impresa.ablation.layout import residuals
from impresa.ablation.statistics import LEAST_SEEDS, Comparison, Difference, compare, seed_correlation

NAN = float("nan")


def scores(num_rows: int = 5, num_seeds: int = 6, *, generator: int = 3, shifts: tuple[float, ...] = ()) -> np.ndarray:
    """Scores (V, S) with seed effects; variant i is shifted by `shifts[i - 1]`."""
    rng = np.random.default_rng(generator)
    values = 0.7 + 0.02 * (rng.standard_normal(num_seeds) + rng.standard_normal((num_rows, num_seeds)))
    values[1 : 1 + len(shifts)] += np.array(shifts)[:, None]
    return values


def difference(comparison: Comparison, row: int) -> Difference:
    found = comparison.differences[row]
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("num", "df", "correlation"), [(2, 8, 0.5), (4, 16, 0.5), (4, 4, 0.3), (8, 32, 0.5), (7, 60, 0.0)]
)
def test_dunnetts_distribution_is_that_of_the_multivariate_t(num: int, df: int, correlation: float) -> None:
    bound = critical_value(num, df, correlation)
    matrix = np.full((num, num), correlation) + (1 - correlation) * np.eye(num)
    limits = np.full(num, bound)
    reference = stats.multivariate_t(shape=matrix, df=df).cdf(limits, lower_limit=-limits, random_state=0)
    assert probability_within(bound, num, df, correlation) == pytest.approx(0.95, abs=1e-9)
    assert reference == pytest.approx(0.95, abs=1e-3)


def test_p_values_are_those_of_scipys_dunnett_when_residuals_are_the_same() -> None:
    """Without seed effects in the data, both tests see the same means; with the same df and variance they agree."""
    rng = np.random.default_rng(0)
    groups = rng.standard_normal((4, 5))
    reference = stats.dunnett(*groups[1:], control=groups[0], random_state=0)
    error = math.sqrt(2 * groups.var(axis=1, ddof=1).mean() / 5)
    ours = [1 - probability_within(abs(group.mean() - groups[0].mean()) / error, 3, 16) for group in groups[1:]]
    assert ours == pytest.approx(reference.pvalue, abs=1e-3)


def test_default_is_dunnett_with_the_seed_as_a_block() -> None:
    values = scores(generator=1, shifts=(0.2, 0.0, -0.2))
    comparison = compare(values)
    residuals = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    half = critical_value(4, 20) * math.sqrt(2 * (residuals**2).sum() / 20 / 6)
    for row in range(1, 5):
        found = difference(comparison, row)
        assert found.mean == pytest.approx(values[row].mean() - values[0].mean())
        assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half))
        assert found.p_value is not None
        assert (found.p_value < 0.05) == (found.verdict != "no difference shown") == (found.low > 0 or found.high < 0)
    verdicts = [difference(comparison, row).verdict for row in range(1, 5)]
    assert verdicts == ["better", "no difference shown", "worse", "no difference shown"]
    assert [difference(compare(values, False), row).verdict for row in (1, 3)] == ["worse", "better"]
    assert "Dunnett" in comparison.method
    assert "20 degrees of freedom" in comparison.method
    assert comparison == compare(values), "nothing is random"


def test_intervals_are_widened_for_the_spread_of_the_base() -> None:
    values = scores(generator=1)
    values[0] += 2 * (values[0] - values.mean(0) + values.mean() - values[0].mean())
    comparison = compare(values)
    base = (values[0] - values[1:].mean(0)).var(ddof=1)
    variants = values[1:] - values[1:].mean(0) - values[1:].mean(1, keepdims=True) + values[1:].mean()
    others = (variants**2).sum() / 15 * 3 / 4
    df = (base + others) ** 2 / (base**2 / 5 + others**2 / 15)
    found = difference(comparison, 1)
    assert "Dunnett" in comparison.method
    assert "widened for the spread of the base" in comparison.method
    assert found.high - found.mean == pytest.approx(stats.t.isf(0.045 / 2, df) * math.sqrt((base + others) / 6))


def test_one_variant_is_judged_by_the_paired_t_test() -> None:
    values = scores(2, shifts=(0.03,))
    found = difference(compare(values), 1)
    reference = stats.ttest_rel(values[1], values[0])
    interval = reference.confidence_interval()
    assert found.p_value == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert "Paired t test" in compare(values).method


def test_seed_effects_cancel() -> None:
    values = scores(shifts=(0.1,))
    moved = compare(values + 5 * np.arange(6))
    assert difference(moved, 1).low == pytest.approx(difference(compare(values), 1).low)


def test_estimates_are_t_intervals() -> None:
    values = scores()
    values[2, 1:] = NAN
    values[3] = NAN
    estimates = compare(values).estimates
    reference = stats.ttest_1samp(values[0], 0).confidence_interval()
    assert estimates[0] is not None
    assert estimates[2] is not None
    assert (estimates[0].low, estimates[0].high) == pytest.approx((reference.low, reference.high))
    assert estimates[0].sd == pytest.approx(values[0].std(ddof=1))
    assert (estimates[2].num_seeds, estimates[2].mean) == (1, pytest.approx(values[2, 0]))
    assert math.isnan(estimates[2].low + estimates[2].sd)
    assert estimates[3] is None


def test_few_seeds_give_estimates_without_verdict() -> None:
    values = scores(num_seeds=LEAST_SEEDS - 1, shifts=(0.5,))
    found = difference(compare(values), 1)
    assert (found.verdict, found.p_value, found.num_seeds) == ("no verdict", None, LEAST_SEEDS - 1)
    assert found.low > 0.1
    assert "no verdict with fewer than 5" in compare(values).method


def test_missing_runs_count_for_their_variant_alone() -> None:
    values = scores(shifts=(0.2, 0.2, 0.2, 0.2))
    values[1, 0] = NAN
    values[2, :2] = math.inf
    values[3, 1:] = -math.inf
    comparison = compare(values)
    both = values[1, 1:] - values[0, 1:]
    assert difference(comparison, 1).mean == pytest.approx(both.mean())
    assert [difference(comparison, row).num_seeds for row in (1, 2, 4)] == [5, 4, 6]
    assert [difference(comparison, row).verdict for row in (1, 2, 4)] == ["better", "no verdict", "better"]
    assert [comparison.differences[row] for row in (0, 3)] == [None, None]


@pytest.mark.parametrize("generator", range(8))
def test_residuals_of_incomplete_layouts_are_those_of_least_squares(generator: int) -> None:
    rng = np.random.default_rng(generator)
    values, present = rng.standard_normal((1, 5, 6)), rng.random((5, 6)) < 0.5
    rows, seeds = np.nonzero(present)
    design = np.concatenate([np.eye(5)[rows], np.eye(6)[seeds]], axis=1)
    left = values[0, present] - design @ np.linalg.lstsq(design, values[0, present], rcond=None)[0]
    squares, df = residuals(values, present)
    assert squares[0] == pytest.approx(left @ left, abs=1e-12)
    assert df == len(rows) - np.linalg.matrix_rank(design)


def test_a_variant_that_varies_more_is_judged_by_its_own_pairs() -> None:
    values = scores(shifts=(0.2, 0.2))
    values[4] += [-0.5, 0.6, -0.4, 0.5, -0.6, 0.4]
    comparison = compare(values, names=["base", "a", "b", "c", "d=1"])
    reference = stats.ttest_rel(values[4], values[0])
    interval = reference.confidence_interval(1 - 0.05 / 4)
    found = difference(comparison, 4)
    assert "(F test of residuals: d=1)" in comparison.method
    assert "Holm" in comparison.method
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value == pytest.approx(min(1, max(reference.pvalue, difference(comparison, 3).p_value or 0)), rel=1)
    assert [difference(comparison, row).verdict for row in (1, 2, 4)] == ["better", "better", "no difference shown"]


def test_when_the_base_varies_more_all_are_judged_by_their_pairs_with_holm() -> None:
    values = scores(shifts=(3.0, 0.5))
    values[0] += [-0.5, 0.6, -0.4, 0.5, -0.6, 0.4]
    comparison = compare(values)
    plain = np.array([stats.ttest_rel(values[row], values[0]).pvalue for row in range(1, 5)])
    order = np.argsort(plain)
    holm = np.maximum.accumulate(plain[order] * [4, 3, 2, 1]).clip(max=1)
    assert [difference(comparison, int(row) + 1).p_value for row in order] == pytest.approx(list(holm))
    assert "F test of residuals: base): paired t tests," in comparison.method


def test_the_choice_of_method_does_not_look_at_means() -> None:
    values = scores(generator=5)
    values[4] += [-0.5, 0.6, -0.4, 0.5, -0.6, 0.4]
    shifted = values + np.array([0, 3, -2, 0.1, 9])[:, None]
    assert compare(values).method == compare(shifted).method


def test_a_control_on_other_seeds_is_compared_without_pairs() -> None:
    values = scores(2)
    found = difference(compare(values, blocked=[True, False]), 1)
    reference = stats.ttest_ind(values[1], values[0], equal_var=False)
    interval = reference.confidence_interval()
    assert found.p_value == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    with_control = compare(scores(3), blocked=[True, True, False])
    assert "Welch" in with_control.method
    assert difference(with_control, 2).p_value is not None


@pytest.mark.parametrize(
    ("values", "verdicts"),
    [
        (np.full((3, 5), 0.1), ["no difference shown"] * 2),
        (np.repeat([[1.0], [0.5], [1.0]], 5, axis=1), ["worse", "no difference shown"]),
        (scores(1), []),
        (np.full((3, 5), NAN), [None, None]),
        (np.full((2, 5), math.inf), [None]),
        (np.array([[0.1, 0.2, 0.3, 0.4, 0.5]] * 2 + [[0.5, 0.1, 0.4, 0.2, 0.3]]), ["no difference shown"] * 2),
        (np.array([[0.1, 0.2, 0.3, 0.4, 0.5], [1.1, 1.2, 1.3, 1.4, 1.5]]), ["better"]),
        (scores(3) * 1e306, ["no difference shown"] * 2),
        (scores(3) * 1e-300, ["no difference shown"] * 2),
        (np.zeros((2, 5)), ["no difference shown"]),
        (np.empty((3, 0)), [None, None]),
        (np.array([[1.0, 2, 3, 4, NAN, NAN], [NAN, NAN, NAN, NAN, 1, 2]]), [None]),
    ],
    ids=["equal", "constant rows", "base alone", "no runs", "infinite", "twin", "same spread", "huge", "tiny", "zero",
         "no seeds", "no shared seeds"],
)  # fmt: skip
def test_odd_studies_give_no_error_and_no_nan(values: np.ndarray, verdicts: list[str | None]) -> None:
    comparison = compare(values)
    found = comparison.differences[1:]
    assert [each and each.verdict for each in found] == verdicts
    for each in found:
        assert each is None or not any(
            math.isnan(bound) for bound in (each.mean, each.low, each.high, each.p_value or 0)
        )


def test_rounding_is_no_difference() -> None:
    base = np.array([0.1, 0.2, 0.3, 0.4, 0.7])
    values = np.stack([base, base * 3 / 3 + 1e-16, base + 0.1 - 0.1])
    assert {difference(compare(values), row).verdict for row in (1, 2)} == {"no difference shown"}


def test_seed_correlation_is_the_intraclass_correlation() -> None:
    values = np.array([[1.0, 2, 3, 4], [2, 3, 3.5, 5.5], [0.5, 2.5, 2, 4]])
    seeds = 3 * values.mean(0).var(ddof=1)
    residual = ((values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()) ** 2).sum() / 6
    assert seed_correlation(values) == pytest.approx((seeds - residual) / (seeds + 2 * residual))
    assert seed_correlation(values[:1]) is None
    assert seed_correlation(np.ones((3, 4))) is None
    assert compare(np.stack([values[0], values[0] + 1])).seed_correlation == pytest.approx(1)
