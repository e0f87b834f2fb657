"""The power of a study, told before it starts: how small a difference its seeds can find."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, special, stats

from impresa.ablation.dunnett import critical_value, spreads
from impresa.ablation.judging import ALPHA, BASE_LEVEL, GUARD_ALPHA, LEAST_SEEDS
from impresa.ablation.statistics import seed_correlation


@dataclass(frozen=True)
class Spread:
    """How much scores vary over seeds, as far as it is known."""

    sd: float
    """Standard deviation over seeds, pooled over variants."""
    seed_correlation: float
    """Between variants with equal seeds; 0 where it is unknown, which promises the least."""
    df: int
    """Degrees of freedom of `sd`: with 4 (five runs) the true one may be 0.6 to 2.9 times of it."""


def spread_of(values: np.ndarray) -> Spread | None:
    """The spread of scores (V, S), NaN where there is no run; None when no variant has two runs.

    The correlation counts only when two variants share at least `LEAST_SEEDS` seeds, and never below 0: the base's runs
    alone say nothing about it.
    """
    kept = np.where(np.isfinite(values), values, np.nan)
    counts = np.isfinite(kept).sum(axis=1)
    rows = kept[counts >= 2]
    if not len(rows):
        return None
    df = counts[counts >= 2] - 1
    sd = math.sqrt(float(np.average(np.nanvar(rows, axis=1, ddof=1), weights=df)))
    shared = np.isfinite(rows).all(axis=0).sum()
    correlation = seed_correlation(rows) if shared >= LEAST_SEEDS else None
    return Spread(sd, max(0.0, correlation or 0.0), int(df.sum()))


def power_of(
    effect_in_sd: float,
    num_variants: int,
    num_seeds: int,
    seed_correlation: float = 0.0,
    *,
    num_controls: int = 0,
    alpha: float = ALPHA,
) -> float:
    """Probability that a variant which differs by `effect_in_sd` standard deviations over seeds is found.

    By the tests of `judging`. `num_variants` stand beside the base on its seeds; `num_controls` are compared with it
    too, but run on other seeds: they share the error rate and add nothing to the pooled variance.
    """
    if num_seeds < 2 or num_variants < 1:
        return 0.0
    return _power(
        abs(effect_in_sd) / _error_in_sd(num_seeds, seed_correlation), num_variants, num_seeds, num_controls, alpha
    )


def smallest_difference(
    sd: float,
    num_variants: int,
    num_seeds: int,
    seed_correlation: float = 0.0,
    *,
    power: float = 0.8,
    num_controls: int = 0,
    alpha: float = ALPHA,
) -> float:
    """The smallest true difference of one variant that is found with probability `power`, in units of `sd`.

    See `power_of`; infinite with fewer than two seeds, or without a variant.
    """
    if num_seeds < 2 or num_variants < 1:
        return math.inf

    def missing(shift: float) -> float:
        return _power(shift, num_variants, num_seeds, num_controls, alpha) - power

    high = 4.0
    while missing(high) < 0:
        high *= 2
    return sd * _error_in_sd(num_seeds, seed_correlation) * float(optimize.brentq(missing, 0.0, high, xtol=1e-6))


def _error_in_sd(num_seeds: int, seed_correlation: float) -> float:
    """Standard error of a difference of two means on equal seeds, in standard deviations over seeds."""
    return math.sqrt(2 * max(1 - seed_correlation, 1e-12) / num_seeds)


def _power(shift: float, num_variants: int, num_seeds: int, num_controls: int, alpha: float) -> float:
    """Chance that a difference of `shift` standard errors is found."""
    bounds, weights = _bounds(num_variants, num_seeds, num_controls, alpha)
    return float(min(1.0, (weights * (special.ndtr(shift - bounds) + special.ndtr(-shift - bounds))).sum()))


@lru_cache(maxsize=64)
def _bounds(num_variants: int, num_seeds: int, num_controls: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Bounds that a mean difference must pass, in true standard errors, with their probabilities.

    They follow from the residuals: a mean square of the base's own and one of the variants', which are independent.
    Variants that are judged by their own pairs by chance are left out.
    """
    num_comparisons, df = num_variants + num_controls, num_variants * (num_seeds - 1)
    critical = critical_value(num_comparisons, df, alpha=alpha)
    if num_variants == 1 or num_seeds < LEAST_SEEDS:
        sds, weights = spreads(df, 256)
        return critical * sds, weights
    df_base, df_rest = num_seeds - 1, df - num_seeds + 1
    base_sds, base_weights = spreads(df_base, 96)
    rest_sds, rest_weights = spreads(df_rest, 96)
    base, rest = base_sds[:, None] ** 2, rest_sds**2
    own, others = base * (num_variants + 1) / num_variants / 2, rest * (num_variants - 1) / num_variants / 2
    apart = base / rest > stats.f.isf(BASE_LEVEL, df_base, df_rest)
    levels = np.where(apart, alpha / num_comparisons, alpha * GUARD_ALPHA / ALPHA)
    df_apart = (own + others) ** 2 / (own**2 / df_base + others**2 / df_rest)
    by_base = -special.stdtrit(df_apart, levels / 2) * np.sqrt(own + others)
    together = critical * np.sqrt((base * df_base + rest * df_rest) / df)
    return np.where(apart, by_base, np.maximum(together, by_base)), base_weights[:, None] * rest_weights
