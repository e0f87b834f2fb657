"""Intervals over items: how far a figure could be off because other data of the same kind would have been tested.

A figure is a function of ratios of sums over items, so that one matrix product gives it for many resamples: a mean over
the captions of images is the ratio of two sums over images. Items (images, with all that belongs to them) are drawn
with replacement, never single captions, and the 95% interval of the drawn values is BCa (Efron 1987, "Better bootstrap
confidence intervals"). The draws are the same every time, so a difference of two figures of the same items is paired.

Where all items are equal there is nothing to resample. A figure within bounds then has the exact interval of a share
that was 0 of n (Clopper & Pearson 1934), moved to the bounds of the figure; any other figure has none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
NUM_RESAMPLES = 2000
CHUNK_ELEMENTS = 1 << 20
"""Counts of drawn items held at once (float64: 8 MiB)."""
Floats: TypeAlias = NDArray[np.float64]
Name = TypeVar("Name", bound=Hashable)
_NORMAL = NormalDist()
_TAIL = (1 - LEVEL) / 2


@dataclass(frozen=True)
class Interval:
    """Bounds that hold the figure of endless data of this kind in 95% of evaluations."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """True for a difference that is shown."""
        return self.low > 0 or self.high < 0


def totals(scores: Floats, item: NDArray[np.int64], num_items: int) -> Floats:
    """(I,) sums of Q scores over the queries of each item."""
    return np.bincount(item, weights=scores, minlength=num_items).astype(np.float64, copy=False)


@dataclass(frozen=True, eq=False)
class PerQuery:
    """Scores of Q single queries, and the item that each belongs to."""

    scores: dict[str, Floats]
    """(Q,) each."""
    item: NDArray[np.int64]
    """(Q,) in 0..num_items-1."""
    num_items: int

    @cached_property
    def counts(self) -> Floats:
        """(I,) queries of each item."""
        return totals(np.ones(len(self.item)), self.item, self.num_items)

    def sums(self, name: str) -> Floats:
        """(I,) sums of a score over the queries of each item."""
        return totals(self.scores[name], self.item, self.num_items)

    def mean(self, name: str, bounds: tuple[float, float] | None = None) -> Statistic:
        """The mean of a score over queries."""
        return Statistic((self.sums(name),), (self.counts,), bounds=bounds)

    def share_within(self, name: str, most: float) -> Statistic:
        """The share of queries with a score of at most `most`."""
        within = totals((self.scores[name] <= most).astype(np.float64), self.item, self.num_items)
        return Statistic((within,), (self.counts,), bounds=(0.0, 1.0))


def _mean_of_ratios(ratios: Floats) -> Floats:
    mean: Floats = ratios.mean(axis=0)
    return mean


@dataclass(frozen=True, eq=False)
class Statistic:
    """A figure that is a function of P ratios of sums over I items."""

    sums: tuple[Floats, ...]
    """P of (I,)."""
    counts: tuple[Floats, ...]
    """P of (I,), what the sums are divided by."""
    of_ratios: Callable[[Floats], Floats] = _mean_of_ratios
    """From (P, N) ratios to N values; the mean unless given."""
    bounds: tuple[float, float] | None = None
    """Least and largest value of the figure, if there are such."""

    @property
    def num_items(self) -> int:
        return len(self.counts[0])

    def without_empty_items(self) -> Statistic:
        """The same over those items that have something to count."""
        used = np.any([counts != 0 for counts in self.counts], axis=0)
        if used.all():
            return self
        sums, counts = (tuple(part[used] for part in parts) for parts in (self.sums, self.counts))
        return replace(self, sums=sums, counts=counts)

    def values(self, sums: Floats, counts: Floats) -> Floats:
        """(N,) values from (P, N) sums and counts; a ratio without anything to count is 0."""
        return self.of_ratios(np.divide(sums, counts, out=np.zeros_like(sums), where=counts != 0))

    def leave_one_out(self) -> Floats:
        """(I,) values without each of the items."""
        sums, counts = np.stack(self.sums), np.stack(self.counts)
        rest, num = (whole.sum(axis=1, keepdims=True) - whole for whole in (sums, counts))
        return self.values(rest, num)

    @property
    def value(self) -> float:
        sums, counts = (np.array([[part.sum()] for part in parts]) for parts in (self.sums, self.counts))
        return float(self.values(sums, counts)[0])


@dataclass(frozen=True, eq=False)
class Median:
    """The median of a score over queries."""

    queries: PerQuery
    name: str

    def interval(self) -> Interval:
        """The order statistics at both ends of the interval of the share at or below the median (Woodruff 1952).

        Its standard error is that between items, at least that of a half of as many single queries.
        """
        scores = self.queries.scores[self.name]
        below = (scores <= np.quantile(scores, 0.5)).astype(np.float64)
        influence = totals(below - below.mean(), self.queries.item, self.queries.num_items) / len(scores)
        error = max(float(np.sqrt((influence**2).sum())), 0.5 / len(scores) ** 0.5)
        reach = _NORMAL.inv_cdf(1 - _TAIL) * error
        low, high = np.quantile(scores, [max(0.5 - reach, 0.0), min(0.5 + reach, 1.0)])
        return Interval(float(low), float(high))


def both(first: Statistic, second: Statistic) -> Statistic:
    """The mean of two means of the same items."""
    return Statistic(first.sums + second.sums, first.counts + second.counts, bounds=first.bounds)


def difference(first: Statistic, second: Statistic) -> Statistic:
    """The second minus the first, item by item; both have the same items in the same order."""
    num = len(first.sums)
    bounds = None
    if first.bounds is not None and second.bounds is not None:
        bounds = (second.bounds[0] - first.bounds[1], second.bounds[1] - first.bounds[0])
    return Statistic(
        first.sums + second.sums,
        first.counts + second.counts,
        of_ratios=lambda ratios: second.of_ratios(ratios[num:]) - first.of_ratios(ratios[:num]),
        bounds=bounds,
    )


def intervals(
    statistics: Mapping[Name, Statistic | Median], *, num_resamples: int = NUM_RESAMPLES
) -> dict[Name, Interval]:
    """95% intervals by name, of those figures that have one."""
    found: dict[Name, Interval | None] = {}
    by_size: dict[int, dict[Name, Statistic]] = defaultdict(dict)
    for name, statistic in statistics.items():
        if isinstance(statistic, Median):
            found[name] = statistic.interval()
        else:
            used = statistic.without_empty_items()
            by_size[used.num_items][name] = used
    for num_items, group in by_size.items():
        if num_items:
            drawn = _resampled(list(group.values()), num_items, num_resamples)
            found |= {name: _interval(group[name], values) for name, values in zip(group, drawn, strict=True)}
    return {name: interval for name in statistics if (interval := found.get(name)) is not None}


def _resampled(statistics: list[Statistic], num_items: int, num_resamples: int) -> list[Floats]:
    """(B,) values of each statistic in the same B resamples of I items."""
    columns: dict[int, Floats] = {}
    for statistic in statistics:
        columns |= {id(part): part for part in (*statistic.sums, *statistic.counts)}
    place = {key: number for number, key in enumerate(columns)}
    table = np.stack(list(columns.values()), axis=1)  # (I, M)
    random = np.random.Generator(np.random.SFC64(0))
    parts = []
    times = np.empty((max(1, min(num_resamples, CHUNK_ELEMENTS // num_items)), num_items))
    for start in range(0, num_resamples, len(times)):
        block = times[: num_resamples - start]
        for row in block:
            row[:] = np.bincount(random.integers(num_items, size=num_items, dtype=np.int32), minlength=num_items)
        parts.append(block @ table)
    drawn = np.concatenate(parts).T  # (M, B)
    return [
        statistic.values(*(drawn[[place[id(part)] for part in kind]] for kind in (statistic.sums, statistic.counts)))
        for statistic in statistics
    ]


def _interval(statistic: Statistic, drawn: Floats) -> Interval | None:
    value = statistic.value
    drawn = drawn[np.isfinite(drawn)]
    rounding = 1e-12 * max(abs(value), 1.0)
    if not len(drawn) or np.ptp(drawn) <= rounding:
        return _of_equal_items(value, statistic.bounds, statistic.num_items)
    # The share of resamples below the figure tells the bias, and the skewness of the items how the error grows.
    below = (drawn < value - rounding).mean() + (np.abs(drawn - value) <= rounding).mean() / 2
    bias = _NORMAL.inv_cdf(float(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn))))
    pulls = statistic.leave_one_out()
    pulls = pulls.mean() - pulls
    spread = float((pulls**2).sum())
    skewness = float((pulls**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0

    def adjusted(share: float) -> float:
        shift = bias + _NORMAL.inv_cdf(share)
        return _NORMAL.cdf(bias + shift / max(1 - skewness * shift, 1e-9))

    low, high = np.quantile(drawn, [adjusted(_TAIL), adjusted(1 - _TAIL)])
    return Interval(float(low), float(high))


def _of_equal_items(value: float, bounds: tuple[float, float] | None, num_items: int) -> Interval | None:
    """At most a share of 1 - (alpha / 2) ** (1 / n) of all items can differ from n that are equal."""
    if bounds is None:
        return None
    unseen: float = 1 - _TAIL ** (1 / num_items)
    low, high = bounds
    return Interval(value + unseen * (low - value), value + unseen * (high - value))
