"""Retrieval metrics: how often an image finds its text, and a text its image, among all candidates, and by chance."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from math import expm1, lgamma

import torch
import torch.nn.functional as F
from torch import Tensor

from impresa.errors import DataError
from impresa.evaluation.results import RECALL_AT, DirectionMetrics, RetrievalMetrics

CHANCE = "chance"
"""Name of the baseline that guesses."""
TIE = 1e-9
"""Cosines closer than this are equal: the same two vectors can differ so much between two matrix products."""
CHUNK_ELEMENTS = 1 << 22
"""Scores held at once (float64: 32 MiB, and about as much again for masks and comparisons)."""


class RightAnswers:
    """Which text is right for which image, when captions that read the same are one text.

    Args:
        image_of_caption: (T,) integers, the image that each caption describes.
        captions: the T captions. The G different ones are the texts.
        num_images: I. An image without any caption is a candidate only.
    """

    def __init__(self, image_of_caption: Tensor, captions: Sequence[str], num_images: int) -> None:
        if image_of_caption.shape != (len(captions),):
            raise ValueError(f"image_of_caption: shape {tuple(image_of_caption.shape)} for {len(captions)} captions")
        if len(captions) and (image_of_caption.min() < 0 or image_of_caption.max() >= num_images):
            raise ValueError(f"image_of_caption must lie in 0..{num_images - 1}")
        index = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        self.num_images = num_images
        self.texts = tuple(index)
        """The G texts, in order of first appearance."""
        self.text_of_caption = torch.tensor([index[caption] for caption in captions], dtype=torch.int64)
        """(T,) int64: the index of each caption's text."""
        # (P, 2) different pairs (image, text), sorted by image.
        pairs = torch.stack([image_of_caption.cpu().to(torch.int64), self.text_of_caption], dim=1)
        self._image, self._text = pairs.unique(dim=0).T.contiguous()

    def mask(self, start: int, stop: int) -> Tensor:
        """(stop - start, G) bool, true where text g is right for image start + i."""
        first, last = torch.searchsorted(self._image, torch.tensor([start, stop])).tolist()
        is_right = torch.zeros(stop - start, len(self.texts), dtype=torch.bool)
        is_right[self._image[first:last] - start, self._text[first:last]] = True
        return is_right

    def images_of(self, text: int) -> Tensor:
        """(I,) bool: the images for which a text is right."""
        is_right = torch.zeros(self.num_images, dtype=torch.bool)
        is_right[self._image[self._text == text]] = True
        return is_right

    def text_of_image(self) -> dict[int, int]:
        """For each image that has one, the first of its texts."""
        pairs = zip(self._image.tolist(), self._text.tolist(), strict=True)
        return dict(sorted(pairs, key=lambda pair: (pair[0], -pair[1])))

    def texts_per_image(self) -> Tensor:
        """(I,) number of right texts of each image."""
        return torch.bincount(self._image, minlength=self.num_images)

    def images_per_caption(self) -> Tensor:
        """(T,) number of right images of each caption."""
        return torch.bincount(self._text, minlength=len(self.texts))[self.text_of_caption]


def retrieval_metrics(
    image_embeddings: Tensor, text_embeddings: Tensor, image_of_caption: Tensor, captions: Sequence[str]
) -> RetrievalMetrics:
    """R@1/5/10, mean and median rank in both directions, by cosine similarity.

    The rank of a query is 1 + the number of wrong candidates that score at least as high as its best right one, so a
    tie counts against the model and a constant embedding cannot look good. Captions that read the same are one
    candidate, right for each of their images; as queries they count as often as they occur.

    Args:
        image_embeddings: (I, E), of any scale.
        text_embeddings: (T, E); several captions may describe one image, and of those that read the same the first
            embedding counts.
        image_of_caption: (T,) integers, the image that each caption describes.
        captions: the T captions themselves.

    Raises:
        DataError: there is no image or no caption, or an embedding is NaN or infinite.
        ValueError: the shapes do not fit together.
    """
    right = RightAnswers(image_of_caption, captions, len(image_embeddings))
    if len(text_embeddings) != len(captions):
        raise ValueError(f"{len(text_embeddings)} text embeddings for {len(captions)} captions")
    texts = unit_rows(text_embeddings, "text")
    first = torch.full((len(right.texts),), len(captions), dtype=torch.int64)
    first.scatter_reduce_(0, right.text_of_caption, torch.arange(len(captions)), "amin")
    return metrics_of_texts(image_embeddings, texts[first], right)


def metrics_of_texts(image_embeddings: Tensor, text_embeddings: Tensor, right: RightAnswers) -> RetrievalMetrics:
    """The same from (I, E) and the embeddings (G, E) of the different texts.

    Scores are computed in float64, a bounded block at a time.
    """
    images, texts = unit_rows(image_embeddings, "image"), unit_rows(text_embeddings, "text")
    if len(images) != right.num_images or len(texts) != len(right.texts) or images.shape[1] != texts.shape[1]:
        fault = f"{tuple(images.shape)} images and {tuple(texts.shape)} texts"
        raise ValueError(f"{fault} for {right.num_images} images and {len(right.texts)} texts")
    ranks_of_images, ranks_of_texts = _ranks(images, texts, right)
    return RetrievalMetrics(
        image_to_text=_summary(ranks_of_images, num_candidates=len(texts)),
        text_to_image=_summary(ranks_of_texts[right.text_of_caption], num_candidates=len(images)),
    )


def unit_rows(embeddings: Tensor, what: str) -> Tensor:
    """(N, E) float64 rows of length 1 (a row of zeros stays zero) of `what` embeddings.

    No row, or one that is not finite, is a `DataError` that names `what`.
    """
    if embeddings.ndim != 2:
        raise ValueError(f"{what} embeddings: shape {tuple(embeddings.shape)} is not (N, E)")
    if not len(embeddings):
        raise DataError(f"{what} embeddings: there are none; evaluate data with at least one usable {what}")
    num_bad = int((~torch.isfinite(embeddings)).any(dim=1).sum())
    if num_bad:
        fault = f"{what} embeddings: {num_bad} of {len(embeddings)} are NaN or infinite"
        raise DataError(f"{fault}; the training diverged, use a smaller optimization.lr or full precision")
    return F.normalize(embeddings.detach().cpu().to(torch.float64), dim=1)


def _ranks(images: Tensor, texts: Tensor, right: RightAnswers) -> tuple[Tensor, Tensor]:
    """Ranks of the images and of the texts that have a right answer.

    A text's best right score is known only after all images were seen, hence the second pass.
    """
    ranks_of_images = []
    best_of_text = torch.full((len(texts),), -torch.inf, dtype=torch.float64)
    for scores, mask in _score_chunks(images, texts, right):
        right_scores = scores.masked_fill(~mask, -torch.inf)
        best_of_text = torch.maximum(best_of_text, right_scores.amax(dim=0))
        best_of_image = right_scores.amax(dim=1)
        num_ahead = (scores.masked_fill_(mask, -torch.inf) >= best_of_image[:, None] - TIE).sum(dim=1)
        ranks_of_images.append(1 + num_ahead[mask.any(dim=1)])
    ranks_of_texts = torch.ones(len(texts), dtype=torch.int64)
    for scores, mask in _score_chunks(images, texts, right):
        ranks_of_texts += (scores.masked_fill_(mask, -torch.inf) >= best_of_text - TIE).sum(dim=0)
    return torch.cat(ranks_of_images), ranks_of_texts


def _score_chunks(images: Tensor, texts: Tensor, right: RightAnswers) -> Iterator[tuple[Tensor, Tensor]]:
    """Cosines (R, G) of R images with all texts and the mask of the right ones, one block of images after another."""
    num_rows = max(1, CHUNK_ELEMENTS // len(texts))
    for start in range(0, len(images), num_rows):
        stop = min(start + num_rows, len(images))
        yield images[start:stop] @ texts.T, right.mask(start, stop)


def _summary(ranks: Tensor, *, num_candidates: int) -> DirectionMetrics:
    return DirectionMetrics(
        recall_at={k: (ranks <= k).double().mean().item() for k in RECALL_AT},
        mean_rank=ranks.double().mean().item(),
        median_rank=ranks.double().quantile(0.5).item(),
        num_queries=len(ranks),
        num_candidates=num_candidates,
    )


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
    # The smallest rank that at least half of the queries reach.
    median_rank = 1 + bisect_left(range(1, num_candidates), 0.5, key=recall_at)
    return DirectionMetrics(
        recall_at={k: recall_at(k) for k in RECALL_AT},
        mean_rank=mean_rank,
        median_rank=float(median_rank),
        num_queries=num_queries,
        num_candidates=num_candidates,
    )


def _hit_rate(num_right: int, num_candidates: int, k: int) -> float:
    """Probability that k of n candidates, drawn at random, hold one of the r right: 1 - C(n-r, k) / C(n, k)."""
    num_wrong = num_candidates - num_right
    if k > num_wrong:
        return 1.0

    def log_choices(n: int) -> float:  # log C(n, k), up to a term of k alone
        return lgamma(n + 1) - lgamma(n - k + 1)

    return -expm1(log_choices(num_wrong) - log_choices(num_candidates))
