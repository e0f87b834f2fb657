"""Verdicts on variants from their scores over seeds. `docs/ablation-statistics.md` says why so, and what holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from impresa.ablation.judging import ALPHA, LEAST_SEEDS, Judged, judge, seeds_of_differences

Verdict = Literal["better", "worse", "no difference shown", "no verdict"]


@dataclass(frozen=True)
class Estimate:
    """Mean of a variant over its seeds, with a t interval."""

    mean: float
    low: float
    high: float
    sd: float
    """Standard deviation over seeds. It and the bounds are NaN with one seed."""
    num_seeds: int


@dataclass(frozen=True)
class Difference:
    """A variant minus the base."""

    mean: float
    low: float
    high: float
    """Bounds of the simultaneous interval (family-wise 95%)."""
    p_value: float | None
    """Adjusted for all variants of the study; None without a verdict."""
    verdict: Verdict
    num_seeds: int
    """Seeds that both have."""


@dataclass(frozen=True)
class Comparison:
    """All variants of a study against its base, on one metric."""

    method: str
    """Sentence that names the method and its assumptions, for under the table."""
    estimates: tuple[Estimate | None, ...]
    """By variant, the base first; None where no run finished."""
    differences: tuple[Difference | None, ...]
    """By variant; None for the base, and where fewer than two seeds are shared with it."""
    seed_correlation: float | None
    """Correlation between variants of the scores of equal seeds, as it was found."""


def compare(
    values: np.ndarray,
    higher_is_better: bool = True,
    *,
    blocked: Sequence[bool] | None = None,
    names: Sequence[str] | None = None,
) -> Comparison:
    """Compare each variant with the base.

    Args:
        values: scores (V, S), row 0 the base, columns equal seeds; NaN for missing runs, infinite ones count as such.
        higher_is_better: of the metric.
        blocked: V truth values, false for a control that ran on other seeds than the base. Such a row stays out of the
            layout: as a block it would be compared with too small an error where seeds matter. It gets Welch's test, at
            the error rate that Dunnett's test leaves each comparison, and counts among them. All true by default.
        names: of the variants, for the sentence on the method.
    """
    num_rows = len(values)
    shares = np.ones(num_rows, dtype=bool) if blocked is None else np.asarray(blocked, dtype=bool)
    present = np.isfinite(values)
    scale = float(np.abs(values[present]).max(initial=0.0)) or 1.0  # squares of large scores overflow
    scaled = np.where(present, values, np.nan) / scale
    num_seeds = seeds_of_differences(present, shares)
    compared = np.flatnonzero(num_seeds >= 2)
    differences: list[Difference | None] = [None] * num_rows
    method = "No variant shares two seeds with the base: no differences."
    if len(compared):
        judged = judge(scaled[None], shares)
        p_values = judged.p_values()[0]
        for place, row in enumerate(compared):
            mean, low, high = (float(part[0, place]) * scale for part in (judged.means, judged.lows, judged.highs))
            verdict = _verdict(bool(judged.found[0, place]), mean > 0, higher_is_better, int(num_seeds[row]))
            p_value = None if verdict == "no verdict" else float(p_values[place])
            differences[row] = Difference(mean, low, high, p_value, verdict, int(num_seeds[row]))
        method = _method(
            judged, shares, num_seeds[compared], names or ["base", *(f"variant {row}" for row in range(1, num_rows))]
        )
    estimates = tuple(_estimate(row[there], scale) for row, there in zip(scaled, present, strict=True))
    return Comparison(method, estimates, tuple(differences), seed_correlation(scaled[shares]))


def seed_correlation(values: np.ndarray) -> float | None:
    """Correlation of equal seeds between variants (V, S), NaN for missing runs: mean covariance by mean variance.

    For complete data it is the intraclass correlation of the two-way layout. None when no two rows share two seeds, or
    nothing varies.
    """
    present = np.isfinite(values)
    covariances = [
        np.cov(values[i, both], values[j, both])[0, 1]
        for i in range(len(values))
        for j in range(i)
        if (both := present[i] & present[j]).sum() >= 2
    ]
    variances = [row[there].var(ddof=1) for row, there in zip(values, present, strict=True) if there.sum() >= 2]
    if not covariances or np.mean(variances) < 1e-24:
        return None
    return float(np.clip(np.mean(covariances) / np.mean(variances), -1, 1))


def _verdict(found: bool, higher: bool, higher_is_better: bool, num_seeds: int) -> Verdict:
    if num_seeds < LEAST_SEEDS:
        return "no verdict"
    if not found:
        return "no difference shown"
    return "better" if higher == higher_is_better else "worse"


def _estimate(scores: np.ndarray, scale: float) -> Estimate | None:
    num = len(scores)
    if not num:
        return None
    mean = float(scores.mean())
    sd = float(scores.std(ddof=1)) if num > 1 else float("nan")
    half = float(stats.t.isf(ALPHA / 2, max(num - 1, 1))) * sd / num**0.5
    return Estimate(mean * scale, (mean - half) * scale, (mean + half) * scale, sd * scale, num)


def _method(judged: Judged, shares: np.ndarray, num_seeds: np.ndarray, names: Sequence[str]) -> str:
    """The sentence under the table."""
    apart = [name for name, how in zip(names, judged.apart[0], strict=True) if how]
    controls = bool((~shares[1:]).any())
    if apart:
        text = (
            f"Variances differ (F test of residuals: {', '.join(apart)}): paired t tests"
            + ("" if judged.apart[0, 0] else " for what differs, the pooled variance for the rest")
            + ", Holm's correction, Bonferroni's intervals (95% together)"
        )
    elif not judged.df[0]:
        text = "95% intervals"
    elif judged.num_comparisons == 1:
        text = f"Paired t test ({judged.df[0]:g} degrees of freedom, 95% interval)"
    else:
        text = (
            f"Dunnett's comparisons with the base, the seed as a block, variance pooled over all variants "
            f"({judged.df[0]:g} degrees of freedom, 95% together)"
        )
        if judged.widened[0]:
            text += ", intervals widened for the spread of the base itself"
    text += "; Welch's t test for the control, whose seeds differ" if controls else ""
    text += "; assumes normal scores"
    if (num_seeds < LEAST_SEEDS).any():
        text += f"; no verdict with fewer than {LEAST_SEEDS} shared seeds"
    return text + "."
