"""Which differences of a study are found, for one study or for many of the same layout at a time."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from scipy import stats

from impresa.ablation.dunnett import SHARED_CONTROL, critical_value, probability_within
from impresa.ablation.layout import (
    Differences,
    Variance,
    base_apart_variance,
    blocked,
    paired,
    pooled_variance,
    row_excess,
    unpaired,
)

ALPHA = 0.05
"""Chance of one false alarm or more in a study."""
LEAST_SEEDS = 5
"""With fewer no verdict is given, only estimates."""
BASE_LEVEL, VARIANTS_LEVEL = 0.01, 0.01
"""Variances differ when the F test of the base's residuals is below the first, or that of a variant's is below the
second divided by the number of variants. Higher levels find more of what differs and cost power where nothing does."""
OWN_PAIRS, OUT_OF_POOL = 1, 2
WILD = 50
"""A row that varies more, and has this many times the variance of the rest, leaves the pool, which would drown in it.
Less is left in: it makes the others' intervals wider, which pays for the errors of an F test on few seeds."""
GUARD_ALPHA = 0.045
"""An interval is no narrower than one by the base's own variance that misses its difference with this probability."""


@dataclass(frozen=True)
class Judged:
    """Verdicts on N studies with K compared variants each."""

    means: np.ndarray
    """(N, K)"""
    lows: np.ndarray
    highs: np.ndarray
    """(N, K): bounds of the simultaneous intervals."""
    found: np.ndarray
    """(N, K): there is a difference."""
    plain: np.ndarray
    """(N, K): p-values before they are adjusted."""
    floors: np.ndarray
    """(N, K): p-values by the base's own variance, scaled by `ALPHA / GUARD_ALPHA`; adjusted ones are never below."""
    apart: np.ndarray
    """(N, V): 0, or `OWN_PAIRS` or `OUT_OF_POOL` for rows that vary more than the rest. With any, Holm's correction is
    used, else Dunnett's test."""
    widened: np.ndarray
    """(N,): some interval is wider than Dunnett's, for the base's own variance."""
    df: np.ndarray
    """(N,): degrees of freedom of the pooled variance, 0 where there is none."""
    correlation: np.ndarray
    """(N,): of the differences, the smallest of any two."""

    @property
    def num_comparisons(self) -> int:
        return self.means.shape[1]

    def p_values(self) -> np.ndarray:
        """Adjusted, (N, K); below `ALPHA` where a difference is found."""
        adjusted = _holm(self.plain)
        for study in np.flatnonzero(~self.apart.any(axis=1) & (self.df > 0)):
            bounds = stats.t.isf(self.plain[study] / 2, self.df[study])
            adjusted[study] = [
                1 - probability_within(bound, self.num_comparisons, self.df[study], self.correlation[study])
                for bound in bounds
            ]
        return np.clip(np.maximum(adjusted, self.floors), 0, 1)


def judge(values: np.ndarray, shares_seeds: np.ndarray) -> Judged:
    """Judge studies `values` (N, V, S) with the same runs missing (NaN), the base first.

    `shares_seeds` (V,) is false for rows that ran on other seeds than the base. Compared are the rows with at least two
    values in `seeds_of_differences`, of which there must be one. Scores should not be far above 1.

    Dunnett's comparisons with the seed as a block. The base enters every difference, so an interval is no narrower than
    one for this difference alone with the base's variance from the base alone. Rows that vary more than the rest are
    judged by their own pairs (all are, when the base does), with Holm's correction over all. Fewer than `LEAST_SEEDS`
    seeds say too little on variances: there it is Dunnett's test alone.
    """
    present = np.isfinite(values[0])
    compared = np.flatnonzero(seeds_of_differences(present, shares_seeds) >= 2)
    apart = _apart(values, present & shares_seeds[:, None])
    patterns, which = np.unique(apart, axis=0, return_inverse=True)
    places = [np.flatnonzero(which == number) for number in range(len(patterns))]
    parts = [
        _judge_alike(values[place], present, shares_seeds, compared, pattern)
        for place, pattern in zip(places, patterns, strict=True)
    ]
    back = np.argsort(np.concatenate(places))
    return Judged(*(np.concatenate([getattr(part, each.name) for part in parts])[back] for each in fields(Judged)))


def seeds_of_differences(present: np.ndarray, shares_seeds: np.ndarray) -> np.ndarray:
    """Seeds that a row shares with the base, or for a row of other seeds the fewer runs of the two; 0 for the base."""
    shared, fewer = (present & present[0]).sum(axis=1), np.minimum(present.sum(axis=1), present[0].sum())
    return np.where(shares_seeds, shared, fewer) * (np.arange(len(present)) > 0)


def _apart(values: np.ndarray, layout: np.ndarray) -> np.ndarray:
    """Rows (N, V) that vary more than the rest, by a test that no mean enters."""
    p_values, ratios, df = row_excess(values, layout)
    levels = np.full(len(layout), VARIANTS_LEVEL / max(1, len(layout) - 1))
    levels[0] = BASE_LEVEL
    apart = (p_values < levels) & (df >= LEAST_SEEDS - 1)
    return np.where(apart & (ratios > WILD), OUT_OF_POOL, apart * OWN_PAIRS)


def _judge_alike(
    values: np.ndarray, present: np.ndarray, shares_seeds: np.ndarray, compared: np.ndarray, apart: np.ndarray
) -> Judged:
    """Judge studies with the same rows `apart` (V,)."""
    layout = present & (shares_seeds & (apart < OUT_OF_POOL))[:, None]
    own_pairs = (apart > 0) | (apart[0] > 0)
    pooled, num_comparisons = pooled_variance(values, layout), len(compared)

    def difference(row: int, variance: Variance) -> Differences:
        if not shares_seeds[row]:
            return unpaired(values, present, row)
        return paired(values, present, row) if own_pairs[row] else blocked(values, present, row, variance)

    tests = Differences.of_rows([difference(row, pooled) for row in compared])
    plain, df = tests.p_values(), pooled.df[0]
    correlation = _correlation(present, compared[shares_seeds[compared]])
    if apart.any() or not df:
        level, found = ALPHA / num_comparisons, _holm(plain) < ALPHA
    else:
        level = float(2 * stats.t.sf(critical_value(num_comparisons, df, correlation, ALPHA), df))
        found = plain < level
    halves, guard_halves, floors = tests.half_widths(level), np.zeros_like(plain), np.zeros_like(plain)
    if (by_base := base_apart_variance(values, layout)) is not None and present[0].sum() >= LEAST_SEEDS:
        guarded = (shares_seeds & ~own_pairs)[compared]
        guard = Differences.of_rows([difference(row, by_base) for row in compared])
        floors = np.where(guarded, guard.p_values() * ALPHA / GUARD_ALPHA, 0.0)
        guard_halves = np.where(guarded, guard.half_widths(GUARD_ALPHA), 0.0)
    found &= floors < ALPHA
    widest = np.maximum(halves, guard_halves)
    lows, highs = tests.means - widest, tests.means + widest
    # Holm finds more than Bonferroni's intervals exclude: such an interval ends at 0.
    lows = np.where(found & (tests.means > 0), np.maximum(lows, 0), lows)
    highs = np.where(found & (tests.means < 0), np.minimum(highs, 0), highs)
    widened = np.any(guard_halves > halves, axis=1)
    num = len(values)
    apart_rows, correlations = np.tile(apart, (num, 1)), np.full(num, correlation)
    return Judged(tests.means, lows, highs, found, plain, floors, apart_rows, widened, pooled.df, correlations)


def _correlation(present: np.ndarray, compared: np.ndarray) -> float:
    """The smallest correlation of two mean differences to the base: a half where all seeds are there.

    Dunnett's distribution with the smallest for all is on the safe side.
    """
    shared = (present[compared] & present[0]).astype(float)
    counts = shared.sum(axis=1)
    correlations = SHARED_CONTROL * (shared @ shared.T) / np.sqrt(np.outer(counts, counts))
    return float(correlations.min(initial=SHARED_CONTROL))


def _holm(p_values: np.ndarray) -> np.ndarray:
    """Adjusted by Holm's method, (N, K)."""
    num = p_values.shape[1]
    order = np.argsort(p_values, axis=1)
    steps = np.maximum.accumulate(np.take_along_axis(p_values, order, axis=1) * np.arange(num, 0, -1), axis=1)
    return np.minimum(np.take_along_axis(steps, np.argsort(order, axis=1), axis=1), 1)
