"""Intervals over items: parity with scipy, coverage, clusters, bounds where nothing varies, memory and time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from impresa.evaluation import bootstrap
from impresa.evaluation.bootstrap import Interval, Median, PerQuery, Statistic, both, difference, intervals

SHARE = (0.0, 1.0)


def per_item(scores: np.ndarray) -> PerQuery:
    return PerQuery({"score": scores.astype(np.float64)}, np.arange(len(scores)), len(scores))


def interval(statistic: Statistic | Median, num_resamples: int = bootstrap.NUM_RESAMPLES) -> Interval:
    return intervals({"it": statistic}, num_resamples=num_resamples)["it"]


@pytest.mark.parametrize("draw", [
    lambda random, num: random.normal(size=num),
    lambda random, num: random.exponential(size=num),
    lambda random, num: random.random(num) < 0.8,
])  # fmt: skip
def test_equals_the_bca_interval_of_scipy(draw: Callable[..., np.ndarray]) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    scores = draw(np.random.default_rng(1), 60).astype(float)
    ours = interval(per_item(scores).mean("score"), 20_000)
    theirs = scipy_stats.bootstrap(
        (scores,), np.mean, n_resamples=20_000, method="BCa", random_state=np.random.default_rng(2)
    ).confidence_interval
    tolerance = 0.04 * (theirs.high - theirs.low)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=tolerance)


def test_paired_differences_equal_those_of_scipy() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(3)
    first = random.random(80)
    second = np.clip(first + random.normal(0.05, 0.1, 80), 0, 1) ** 2
    of_both = difference(per_item(first).mean("score"), per_item(second).mean("score"))
    ours = interval(of_both, 20_000)
    theirs = scipy_stats.bootstrap(
        (first, second), lambda a, b, axis: (b - a).mean(axis=axis), paired=True, vectorized=True,
        n_resamples=20_000, method="BCa", random_state=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert of_both.value == pytest.approx((second - first).mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.04 * (theirs.high - theirs.low))
    unpaired = interval(per_item(second).mean("score"))
    assert ours.high - ours.low < (unpaired.high - unpaired.low) / 2


def coverage(simulate: Callable[[np.random.Generator], Statistic | Median], true: float, num: int = 400) -> float:
    random = np.random.default_rng(0)
    found = [interval(simulate(random), 400) for _ in range(num)]
    return float(np.mean([one.low <= true <= one.high for one in found]))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_share_is_covered(share: float) -> None:
    found = coverage(lambda random: per_item(random.random(100) < share).mean("score", SHARE), share)
    assert 0.92 <= found <= 0.995


def test_captions_of_one_image_are_drawn_together() -> None:
    """Five captions that share the luck of their image: taken for independent, the interval covers far too little."""
    item = np.arange(60).repeat(5)

    def scores(random: np.random.Generator) -> np.ndarray:
        return random.normal(size=60)[item] + 0.3 * random.normal(size=300)

    clustered = coverage(lambda random: PerQuery({"score": scores(random)}, item, 60).mean("score"), 0.0)
    single = coverage(lambda random: per_item(scores(random)).mean("score"), 0.0)
    assert clustered >= 0.92
    assert single < 0.7


@pytest.mark.parametrize("num_captions", [1, 4])
def test_a_median_is_covered(num_captions: int) -> None:
    item = np.arange(80).repeat(num_captions)

    def median(random: np.random.Generator) -> Median:
        return Median(PerQuery({"score": random.exponential(size=80)[item]}, item, 80), "score")

    assert 0.92 <= coverage(median, float(np.log(2))) <= 0.99


@pytest.mark.parametrize("num", [1, 20, 1000])
def test_a_share_of_none_or_all_has_the_exact_interval(num: int) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    for right in (0, num):
        found = interval(per_item(np.full(num, right / num)).mean("score", SHARE))
        exact = scipy_stats.binomtest(right, num).proportion_ci(method="exact")
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high))


def test_runs_that_agree_everywhere_may_still_differ_elsewhere() -> None:
    same = per_item(np.arange(100) % 3 == 0).mean("score", SHARE)
    found = interval(difference(same, same))
    assert found.low == pytest.approx(-found.high)
    assert 0.03 < found.high < 0.04
    assert not found.excludes_zero


def test_what_has_no_bounds_and_does_not_vary_has_no_interval() -> None:
    assert intervals({"rank": per_item(np.ones(5)).mean("score")}) == {}
    assert intervals({"nothing": PerQuery({"score": np.zeros(0)}, np.zeros(0, dtype=int), 0).mean("score")}) == {}


def test_items_without_a_query_are_not_drawn() -> None:
    scores, item = np.array([0.0, 1.0, 1.0, 0.0, 1.0]), np.array([0, 2, 2, 5, 7])
    with_gaps = PerQuery({"score": scores}, item, 9).mean("score", SHARE)
    dense = PerQuery({"score": scores}, np.array([0, 1, 1, 2, 3]), 4).mean("score", SHARE)
    assert interval(with_gaps) == interval(dense)


def test_the_mean_of_two_directions_is_drawn_by_the_same_items() -> None:
    random = np.random.default_rng(0)
    first = per_item(random.random(50)).mean("score", SHARE)
    opposite = Statistic((1 - first.sums[0],), first.counts, bounds=SHARE)
    assert both(first, opposite).value == pytest.approx(0.5)
    found = interval(both(first, opposite))  # what one gains the other loses
    assert (found.low, found.high) == pytest.approx((0.5, 0.5), abs=0.05)
    assert found.high - found.low < (interval(first).high - interval(first).low)


def test_chunks_change_nothing_and_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    statistic = per_item(np.random.default_rng(0).random(50)).mean("score", SHARE)
    whole = interval(statistic)
    monkeypatch.setattr(bootstrap, "CHUNK_ELEMENTS", 120)
    parts = interval(statistic)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=1e-12)


def test_intervals_are_the_same_every_time_and_in_any_company() -> None:
    random = np.random.default_rng(0)
    first, second = (per_item(random.random(40)).mean("score", SHARE) for _ in range(2))
    assert intervals({"a": first, "b": second}) == {"a": interval(first), "b": interval(second)}
