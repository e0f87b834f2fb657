"""Baselines to compare scores with: retrieval by the colours of an image, and by a linear model of its pixels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

BINS_PER_CHANNEL = 4
MAX_PIXELS_PER_SIDE = 64
MAX_WORDS = 512
RIDGE = 1e-3
PIXELS_PER_SIDE = 16
MAX_TFIDF_WORDS = 2048
ALPHA = 10.0
"""Ridge on the pixels, which are from 0 to 1."""
MAX_PRODUCTS, MAX_NUMBERS = 1 << 38, 1 << 26
"""Multiplications for the scores of a baseline in one direction, and numbers in its embeddings (float64: 512 MiB)."""


class Baseline(Protocol):
    """Features of images and texts in one space, whose cosine says how well they fit."""

    num_columns: int

    def embed_images(self, features: Tensor) -> Tensor:
        """(I, C) of images given by their features."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(T, C) of texts."""


def fits_in_seconds(baseline: Baseline, num_images: int, num_texts: int) -> bool:
    """True if all images can be compared with all texts in seconds, and in less memory than models need."""
    width = baseline.num_columns
    return num_images * num_texts * width <= MAX_PRODUCTS and (num_images + num_texts) * width <= MAX_NUMBERS


def colour_histogram(image: Image.Image) -> Tensor:
    """(64,) float64: square roots of the shares of 4 x 4 x 4 colours among the pixels of an RGB image.

    Roots make rare colours count (the Hellinger map). Large images are counted at a reduced size.
    """
    side = (min(image.width, MAX_PIXELS_PER_SIDE), min(image.height, MAX_PIXELS_PER_SIDE))
    levels = np.asarray(image.resize(side, Image.Resampling.NEAREST).convert("RGB")) // (256 // BINS_PER_CHANNEL)
    colours = (levels[..., 0] * BINS_PER_CHANNEL + levels[..., 1]) * BINS_PER_CHANNEL + levels[..., 2]
    counts = np.bincount(colours.ravel(), minlength=BINS_PER_CHANNEL**3)
    return torch.from_numpy(np.sqrt(counts / counts.sum()))


def small_pixels(image: Image.Image) -> Tensor:
    """(768,) uint8: the red, green and blue of an RGB image at 16 x 16 pixels, each the mean of its part."""
    side = (PIXELS_PER_SIDE, PIXELS_PER_SIDE)
    return torch.from_numpy(np.array(image.convert("RGB").resize(side, Image.Resampling.BOX)).ravel())


class _Words:
    """The words that most captions have, and how often texts have them."""

    def __init__(self, captions: Sequence[Sequence[str]], most: int) -> None:
        self.num_captions = sum(map(len, captions))
        found = Counter(word for texts in captions for text in texts for word in set(_words(text))).most_common(most)
        self._column = {word: column for column, (word, _) in enumerate(found)}
        self.num_captions_with = torch.tensor([count for _, count in found], dtype=torch.float64)
        """(W,) captions that have each word."""

    def __len__(self) -> int:
        return len(self._column)

    def count(self, texts: Iterable[str]) -> Tensor:
        """(T, W) float64: how often each text has each word."""
        texts = list(texts)
        counts = torch.zeros(len(texts), len(self), dtype=torch.float64)
        for row, text in enumerate(texts):
            for word, number in Counter(_words(text)).items():
                if word in self._column:
                    counts[row, self._column[word]] = number
        return counts


class ColourHistogramModel:
    """Canonical correlations between colour histograms and the words of captions; cosine in the space they share.

    The directions of largest correlation are found on the training data with a ridge on both sides, and each counts by
    its correlation (Hotelling 1936, "Relations between two sets of variates"; Vinod 1976 for the ridge).

    Args:
        histograms: (N, 64) of the training images.
        captions: the captions of each of the N images.
    """

    def __init__(self, histograms: Tensor, captions: Sequence[Sequence[str]]) -> None:
        self._words = _Words(captions, MAX_WORDS)
        word_shares = torch.stack([self._count(texts).mean(dim=0) for texts in captions])
        self._mean_histogram, self._mean_words = histograms.mean(dim=0), word_shares.mean(dim=0)
        x, y = histograms - self._mean_histogram, word_shares - self._mean_words
        whiten_x, whiten_y = _whitening(x), _whitening(y)
        left, correlations, right = torch.linalg.svd(whiten_x.T @ x.T @ y @ whiten_y, full_matrices=False)
        self._from_histogram = whiten_x @ left * correlations
        self._from_words = whiten_y @ right.T * correlations
        self.num_columns = len(correlations)

    def embed_images(self, histograms: Tensor) -> Tensor:
        """(N, C) of images given by their (N, 64) histograms."""
        return (histograms - self._mean_histogram) @ self._from_histogram

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(T, C) of texts."""
        return (self._count(texts) - self._mean_words) @ self._from_words

    def _count(self, texts: Iterable[str]) -> Tensor:
        """(T, W): 1 where the text has the word."""
        return self._words.count(texts).clamp(max=1)


class PixelRidgeModel:
    """Ridge regression from the pixels of an image to the TF-IDF of its caption, mean over its captions.

    The weight of a word is its count times log((1 + captions) / (1 + captions that have it)) + 1, and a text's weights
    have length one (Salton & Buckley 1988, smoothed as scikit-learn's `TfidfVectorizer` does). The regression is that
    of Hoerl & Kennard 1970 with an intercept; with fewer images than pixels its dual form is solved.

    Args:
        pixels: (N, 768) of the training images, 0 to 255.
        captions: the captions of each of the N images.
    """

    def __init__(self, pixels: Tensor, captions: Sequence[Sequence[str]]) -> None:
        self._words = _Words(captions, MAX_TFIDF_WORDS)
        self._weight = ((1 + self._words.num_captions) / (1 + self._words.num_captions_with)).log() + 1
        self.num_columns = len(self._words)
        inputs, targets = (
            pixels.double() / 255,
            torch.stack([self.embed_texts(texts).mean(dim=0) for texts in captions]),
        )
        self._mean_pixels, self._mean_target = inputs.mean(dim=0), targets.mean(dim=0)
        x, y = inputs - self._mean_pixels, targets - self._mean_target
        if len(x) < x.shape[1]:
            self._coefficients = x.T @ torch.linalg.solve(_ridged(x @ x.T), y)
        else:
            self._coefficients = torch.linalg.solve(_ridged(x.T @ x), x.T @ y)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """(N, W) predicted weights of words, of images given by their (N, 768) pixels."""
        return (pixels.double() / 255 - self._mean_pixels) @ self._coefficients + self._mean_target

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(T, W) weights of the words of texts; zeros for a text of unknown words."""
        return F.normalize(self._words.count(texts) * self._weight, dim=1)


def _ridged(gram: Tensor) -> Tensor:
    return gram + ALPHA * torch.eye(len(gram), dtype=gram.dtype)


def _whitening(x: Tensor) -> Tensor:
    """(D, D) matrix w for which x @ w has equal, uncorrelated columns, but for the ridge; x (N, D) is centred."""
    covariance = x.T @ x
    ridge = RIDGE * covariance.trace().clamp(min=1e-9) * torch.eye(len(covariance), dtype=x.dtype)
    return torch.linalg.inv(torch.linalg.cholesky(covariance + ridge)).T


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
