"""A baseline to compare scores with: retrieval by nothing but the colours of an image."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

BINS_PER_CHANNEL = 4
MAX_PIXELS_PER_SIDE = 64
MAX_WORDS = 512
RIDGE = 1e-3


def colour_histogram(image: Image.Image) -> Tensor:
    """(64,) float64: square roots of the shares of 4 x 4 x 4 colours among the pixels of an RGB image.

    Roots make rare colours count (the Hellinger map). Large images are counted at a reduced size.
    """
    side = (min(image.width, MAX_PIXELS_PER_SIDE), min(image.height, MAX_PIXELS_PER_SIDE))
    levels = np.asarray(image.resize(side, Image.Resampling.NEAREST).convert("RGB")) // (256 // BINS_PER_CHANNEL)
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
