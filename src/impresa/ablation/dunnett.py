"""Dunnett's distribution: the largest of several t statistics that share a variance and a control."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import optimize, special, stats

SHARED_CONTROL = 0.5
"""Correlation of two differences to one base when all means are over equally many runs."""


def probability_within(bound: float, num_comparisons: int, df: float, correlation: float = SHARED_CONTROL) -> float:
    """Probability that no |t| of `num_comparisons` is above `bound`, when there are no differences.

    The t statistics have equal correlations (0 to below 1) and one variance estimate with `df` degrees of freedom. The
    integral over the standard deviation and the common part of the differences (Dunnett 1955) is done by Gauss-Legendre
    quadrature: nothing is random, and the error is below 1e-8.
    """
    sds, sd_weights = spreads(df, 64)
    commons, common_weights = _between(-8.5, 8.5, 64)
    own = np.sqrt(1 - correlation)
    shift, reach = np.sqrt(correlation) * commons, bound * sds[:, None]
    within = special.ndtr((reach - shift) / own) - special.ndtr((-reach - shift) / own)
    total = sd_weights @ within**num_comparisons @ (common_weights * stats.norm.pdf(commons))
    return float(min(max(total, 0.0), 1.0))


def spreads(df: float, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and probabilities of a standard deviation that is estimated with `df`, in units of the true one."""
    low, high = np.sqrt(stats.chi2.ppf((1e-14, 1 - 1e-14), df) / df)
    nodes, weights = _between(low, high, num_nodes)
    return nodes, weights * stats.chi.pdf(nodes * np.sqrt(df), df) * np.sqrt(df)


@lru_cache(maxsize=1024)
def critical_value(num_comparisons: int, df: float, correlation: float = SHARED_CONTROL, alpha: float = 0.05) -> float:
    """The bound that the largest of `num_comparisons` |t| passes by chance with probability `alpha`."""
    plain, bonferroni = (float(stats.t.isf(alpha / 2 / n, df)) for n in (1, num_comparisons))
    if num_comparisons == 1:
        return plain

    def excess(bound: float) -> float:
        return probability_within(bound, num_comparisons, df, correlation) - 1 + alpha

    return float(optimize.brentq(excess, plain, bonferroni * 1.001, xtol=1e-9))


def _between(low: float, high: float, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of an integral from `low` to `high`."""
    nodes, weights = _legendre(num_nodes)
    return (low + high) / 2 + (high - low) / 2 * nodes, (high - low) / 2 * weights


@lru_cache(maxsize=4)
def _legendre(num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(num_nodes)
