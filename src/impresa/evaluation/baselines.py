"""What a score is worth: guessing, and a model that knows nothing but colours, on the same data by the same metric."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from math import expm1, lgamma

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from impresa.evaluation.results import DirectionMetrics, RetrievalMetrics
from impresa.evaluation.retrieval import RECALL_AT, RightAnswers

CHANCE = "chance"
"""Name of the baseline that guesses."""
BINS_PER_CHANNEL = 4
MAX_PIXELS_PER_SIDE = 64
MAX_WORDS = 512
RIDGE = 1e-3


def chance(right: RightAnswers) -> RetrievalMetrics:
    """Expected metrics of a random order of the candidates, several right answers per query considered."""
    return RetrievalMetrics(
        image_to_text=_expected(right.texts_per_image(), len(right.texts)),
        text_to_image=_expected(right.images_per_caption(), right.num_images),
    )


def _expected(num_right: Tensor, num_candidates: int) -> DirectionMetrics:
    """Expectations over queries with `num_right` (Q,) right answers; those with none are left out, as in the metric."""
    counts = Counter(num_right[num_right > 0].tolist())
    num_queries = sum(counts.values())

    def recall_at(k: int) -> float:
        return sum(n * _hit_rate(right, num_candidates, k) for right, n in counts.items()) / num_queries

    # The best of r right answers has (n - r) / (r + 1) wrong ones before it on average.
    mean_rank = sum(n * (1 + (num_candidates - right) / (right + 1)) for right, n in counts.items()) / num_queries
    low, high = 1, num_candidates
    while low < high:  # the smallest rank that at least half of the queries reach
        middle = (low + high) // 2
        low, high = (low, middle) if recall_at(middle) >= 0.5 else (middle + 1, high)
    return DirectionMetrics(
        recall_at={k: recall_at(k) for k in RECALL_AT},
        mean_rank=mean_rank,
        median_rank=float(low),
        num_queries=num_queries,
        num_candidates=num_candidates,
    )


def _hit_rate(num_right: int, num_candidates: int, k: int) -> float:
    """Probability that k of n candidates, drawn at random, hold one of the r right: 1 - C(n-r, k) / C(n, k)."""
    num_wrong = num_candidates - num_right
    if k > num_wrong:
        return 1.0
    log_miss = _log_choices(num_wrong, k) - _log_choices(num_candidates, k)
    return -expm1(log_miss)


def _log_choices(n: int, k: int) -> float:
    """log C(n, k), up to a term of k alone."""
    return lgamma(n + 1) - lgamma(n - k + 1)


def colour_histogram(image: Image.Image) -> Tensor:
    """(64,) float64: square roots of the shares of 4 x 4 x 4 colours among the pixels of an RGB image.

    Roots make rare colours count (the Hellinger map). Large images are counted at a reduced size.
    """
    side = (min(image.width, MAX_PIXELS_PER_SIDE), min(image.height, MAX_PIXELS_PER_SIDE))
    pixels = np.asarray(image.convert("RGB").resize(side, Image.Resampling.NEAREST), dtype=np.int64)
    levels = pixels * BINS_PER_CHANNEL // 256
    colours = (levels[..., 0] * BINS_PER_CHANNEL + levels[..., 1]) * BINS_PER_CHANNEL + levels[..., 2]
    counts = np.bincount(colours.ravel(), minlength=BINS_PER_CHANNEL**3)
    return torch.from_numpy(np.sqrt(counts / counts.sum()))


class ColourHistogramModel:
    """Canonical correlations between colour histograms and the words of captions; cosine in the space they share.

    The directions of largest correlation are found on the training data with a ridge on both sides, and each counts by
    its correlation (Hotelling 1936, "Relations between two sets of variates"; Vinod 1976 for the ridge).

    Args:
        histograms: (N, 64) of the training images.
        captions: the captions of each of the N images.
    """

    def __init__(self, histograms: Tensor, captions: Sequence[Sequence[str]]) -> None:
        words = Counter(word for texts in captions for text in texts for word in set(_words(text)))
        self._column = {word: i for i, (word, _) in enumerate(words.most_common(MAX_WORDS))}
        word_shares = torch.stack([self._count(texts).mean(dim=0) for texts in captions])
        self._mean_histogram, self._mean_words = histograms.mean(dim=0), word_shares.mean(dim=0)
        x, y = histograms - self._mean_histogram, word_shares - self._mean_words
        whiten_x, whiten_y = _whitening(x), _whitening(y)
        left, correlations, right = torch.linalg.svd(whiten_x.T @ x.T @ y @ whiten_y, full_matrices=False)
        self._from_histogram = whiten_x @ left * correlations
        self._from_words = whiten_y @ right.T * correlations

    def embed_images(self, histograms: Tensor) -> Tensor:
        """(N, C) of images given by their (N, 64) histograms."""
        return (histograms - self._mean_histogram) @ self._from_histogram

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(T, C) of texts."""
        return (self._count(texts) - self._mean_words) @ self._from_words

    def _count(self, texts: Iterable[str]) -> Tensor:
        """(T, W): 1 where the text has the word."""
        texts = list(texts)
        present = torch.zeros(len(texts), len(self._column), dtype=torch.float64)
        for row, text in enumerate(texts):
            present[row, [self._column[word] for word in set(_words(text)) if word in self._column]] = 1
        return present


def _whitening(x: Tensor) -> Tensor:
    """(D, D) matrix w for which x @ w has equal, uncorrelated columns, but for the ridge; x (N, D) is centred."""
    covariance = x.T @ x
    ridge = RIDGE * covariance.trace().clamp(min=1e-9) * torch.eye(len(covariance), dtype=x.dtype)
    return torch.linalg.inv(torch.linalg.cholesky(covariance + ridge)).T


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
