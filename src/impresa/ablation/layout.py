"""Scores of variants on equal seeds as a two-way layout, some of its runs missing.

Score of variant v on seed s = mean of the variant + effect of the seed + residual. Arrays carry many studies of one
layout at a time: `values` (N, V, S), the base first, and `present` (V, S), true where there is a run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

ROUNDING = 1e-12
"""Differences of scores below this are none, in units of the largest score: float64 keeps 16 digits."""


@dataclass(frozen=True)
class Differences:
    """Mean differences to the base with their standard errors and degrees of freedom, (N,) or (N, K)."""

    means: np.ndarray
    errors: np.ndarray
    df: np.ndarray

    @classmethod
    def of_rows(cls, rows: list[Differences]) -> Differences:
        return cls(*(np.stack([getattr(row, name) for row in rows], axis=1) for name in ("means", "errors", "df")))

    def p_values(self) -> np.ndarray:
        """Two-sided, not adjusted. A difference without any spread is certain; no difference is none."""
        with np.errstate(divide="ignore", invalid="ignore"):
            statistics = np.where(self.means == 0, 0.0, np.abs(self.means) / self.errors)
        return 2 * special.stdtr(self.df, -statistics)

    def half_widths(self, alpha: float | np.ndarray) -> np.ndarray:
        """Half of each interval that misses its difference with probability `alpha`."""
        return -special.stdtrit(self.df, np.asarray(alpha) / 2) * self.errors


def residuals(values: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, int]:
    """Sum of squared residuals of the layout by least squares (N,), and its degrees of freedom."""
    kept = present[present.any(axis=1)]
    rows, seeds = np.nonzero(kept)
    if not len(rows):
        return np.zeros(len(values)), 0
    scores = values[:, present]
    in_row = np.eye(len(kept))[rows]  # (runs, rows)
    mean_of_row = in_row / kept.sum(axis=1)
    effects = np.eye(kept.shape[1])[seeds]  # (runs, S)
    basis, sizes, _ = np.linalg.svd(effects - in_row @ (mean_of_row.T @ effects), full_matrices=False)
    basis = basis[:, sizes > 1e-9 * max(sizes[0], 1)]
    left = scores - scores @ mean_of_row @ in_row.T
    left = left - left @ basis @ basis.T
    squares = (left * left).sum(axis=1)
    df = len(rows) - len(kept) - basis.shape[1]
    return np.where(squares < len(rows) * ROUNDING**2, 0.0, squares), df


def row_excess(values: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Test that a row varies more than all others: p-values and ratios of variances (N, V), and the rows' df (V,).

    The residuals of the layout without the row, and what the row adds to them, are independent, and their ratio has an
    F distribution when variances are equal (Russell and Bradley 1958). Means play no part. p is 1 where the rest has no
    degrees of freedom.
    """
    whole, df = residuals(values, present)
    p_values, ratios = np.ones(values.shape[:2]), np.zeros(values.shape[:2])
    dfs = np.zeros(len(present), dtype=int)
    for row in range(len(present)):
        rest, df_rest = residuals(values, _without(present, row))
        dfs[row] = df - df_rest
        if dfs[row] > 0 and df_rest > 0:
            own = np.maximum(whole - rest, 0)
            with np.errstate(divide="ignore", invalid="ignore"):
                ratios[:, row] = np.where(own > 0, own / dfs[row] / (rest / df_rest), 0.0)
            p_values[:, row] = special.fdtrc(dfs[row], df_rest, ratios[:, row])
    return p_values, ratios, dfs


@dataclass(frozen=True)
class Variance:
    """Variance (N,) of the difference of two runs on one seed, with its degrees of freedom (N,)."""

    of_pairs: np.ndarray
    df: np.ndarray


def pooled_variance(values: np.ndarray, present: np.ndarray) -> Variance:
    """From the residuals of all rows, which are taken to vary alike."""
    squares, df = residuals(values, present)
    return Variance(2 * squares / max(df, 1), np.full(len(values), float(df)))


def base_apart_variance(values: np.ndarray, present: np.ndarray) -> Variance | None:
    """The base's variance from the base alone, that of variants pooled over them; df by Satterthwaite.

    None with a single variant, whose pairs say all. With missing runs the base's share is approximate.
    """
    whole, df = residuals(values, present)
    rest, df_rest = residuals(values, _without(present, 0))
    df_own, num_rows = df - df_rest, int(present.any(axis=1).sum())
    if df_rest < 1 or df_own < 1:
        return None
    base = np.maximum(whole - rest, 0) / df_own * num_rows / (num_rows - 1)  # and 1 / (rows - 1) of the others'
    others = rest / df_rest * (num_rows - 2) / (num_rows - 1)
    return Variance(base + others, _satterthwaite(base, df_own, others, df_rest))


def blocked(values: np.ndarray, present: np.ndarray, row: int, variance: Variance) -> Differences:
    """Mean difference to row 0 on the seeds that both have, with a variance of the layout."""
    kept = (values[:, row] - values[:, 0])[:, present[row] & present[0]]
    return Differences(_rounded(kept.mean(axis=1)), np.sqrt(variance.of_pairs / kept.shape[1]), variance.df)


def paired(values: np.ndarray, present: np.ndarray, row: int) -> Differences:
    """Mean difference to row 0 with the variance of its own pairs."""
    kept = (values[:, row] - values[:, 0])[:, present[row] & present[0]]
    df = kept.shape[1] - 1
    variance = Variance(_rounded(kept.std(axis=1, ddof=1)) ** 2, np.full(len(kept), float(df)))
    return blocked(values, present, row, variance)


def unpaired(values: np.ndarray, present: np.ndarray, row: int) -> Differences:
    """Difference to row 0 of a row that ran on other seeds: Welch's test."""
    own, base = values[:, row, present[row]], values[:, 0, present[0]]
    parts = [_rounded(side.std(axis=1, ddof=1)) ** 2 / side.shape[1] for side in (own, base)]
    df = _satterthwaite(parts[0], own.shape[1] - 1, parts[1], base.shape[1] - 1)
    return Differences(_rounded(own.mean(axis=1) - base.mean(axis=1)), np.sqrt(parts[0] + parts[1]), df)


def _satterthwaite(one: np.ndarray, df_one: int, other: np.ndarray, df_other: int) -> np.ndarray:
    """Degrees of freedom (N,) of the sum of two variances."""
    with np.errstate(divide="ignore", invalid="ignore"):
        df = (one + other) ** 2 / (one**2 / df_one + other**2 / df_other)
    return np.where(np.isfinite(df), df, 1.0)


def _without(present: np.ndarray, row: int) -> np.ndarray:
    kept = present.copy()
    kept[row] = False
    return kept


def _rounded(numbers: np.ndarray) -> np.ndarray:
    return np.where(np.abs(numbers) < ROUNDING, 0.0, numbers)
