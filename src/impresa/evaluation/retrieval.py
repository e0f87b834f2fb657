"""Retrieval metrics: how often an image finds its text, and a text its image, among all candidates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from impresa.errors import DataError
from impresa.evaluation.results import DirectionMetrics, RetrievalMetrics

RECALL_AT = (1, 5, 10)
TIE = 1e-9
"""Cosines closer than this are equal: the same two vectors can differ so much between two matrix products."""
CHUNK_ELEMENTS = 1 << 22
"""Scores held at once (float64: 32 MiB, and about as much again for masks and comparisons)."""


class RightAnswers:
    """Which texts are right for which image: its own captions and every caption that reads the same.

    Args:
        image_of_text: (T,) integers, the image that each text describes.
        captions: the T texts. Equal strings are one text with several right images.
        num_images: I. An image without any text is a candidate only.

    Raises:
        ValueError: the lengths differ, or an image index lies outside 0..I-1.
    """

    def __init__(self, image_of_text: Tensor, captions: Sequence[str], num_images: int) -> None:
        if image_of_text.shape != (len(captions),):
            raise ValueError(f"image_of_text has shape {tuple(image_of_text.shape)} for {len(captions)} captions")
        if len(captions) and (image_of_text.min() < 0 or image_of_text.max() >= num_images):
            raise ValueError(f"image_of_text must lie in 0..{num_images - 1}")
        index = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        self.distinct = tuple(index)
        """The G distinct captions, in order of first appearance."""
        self.group_of_text = torch.tensor([index[caption] for caption in captions], dtype=torch.int64)
        """(T,): which distinct caption each text is."""
        self.image_of_text, self.captions = image_of_text.cpu().to(torch.int64), captions
        self.num_images, self.num_texts = num_images, len(captions)
        # (P, 2) distinct pairs (image, group), sorted by image.
        self._pairs = torch.stack([self.image_of_text, self.group_of_text], dim=1).unique(dim=0)

    def mask(self, start: int, stop: int) -> Tensor:
        """(stop - start, T) bool: whether text t is right for image start + i."""
        first, last = torch.searchsorted(self._pairs[:, 0].contiguous(), torch.tensor([start, stop])).tolist()
        image, group = self._pairs[first:last].unbind(dim=1)
        has_group = torch.zeros(stop - start, len(self.distinct), dtype=torch.bool)
        has_group[image - start, group] = True
        return has_group[:, self.group_of_text]

    def images_of(self, group: int) -> Tensor:
        """(I,) bool: the images for which a distinct caption is right."""
        is_right = torch.zeros(self.num_images, dtype=torch.bool)
        is_right[self._pairs[self._pairs[:, 1] == group, 0]] = True
        return is_right

    def texts_per_image(self) -> Tensor:
        """(I,) number of right texts of each image."""
        texts_per_group = torch.bincount(self.group_of_text, minlength=len(self.distinct))
        image, group = self._pairs.unbind(dim=1)
        return torch.zeros(self.num_images, dtype=torch.int64).index_add_(0, image, texts_per_group[group])

    def images_per_text(self) -> Tensor:
        """(T,) number of right images of each text."""
        return torch.bincount(self._pairs[:, 1], minlength=len(self.distinct))[self.group_of_text]


def retrieval_metrics(
    image_embeddings: Tensor, text_embeddings: Tensor, image_of_text: Tensor, captions: Sequence[str]
) -> RetrievalMetrics:
    """R@1/5/10, mean and median rank in both directions, by cosine similarity.

    The rank of a query is 1 + the number of wrong candidates that score at least as high as its best right one, so a
    tie counts against the model and a constant embedding cannot look good. Every image with the same caption is right
    for that caption, and the other way round. Scores are computed in float64, a bounded block at a time.

    Args:
        image_embeddings: (I, E), of any scale.
        text_embeddings: (T, E); several texts may describe one image.
        image_of_text: (T,) integers, the image that each text describes.
        captions: the T texts themselves; equal strings are the same text.

    Raises:
        DataError: there is no image or no text, or an embedding is NaN or infinite.
        ValueError: the shapes do not fit together.
    """
    images, texts = unit_rows(image_embeddings, "image"), unit_rows(text_embeddings, "text")
    if images.shape[1] != texts.shape[1] or len(texts) != len(captions):
        raise ValueError(f"{tuple(images.shape)} images, {tuple(texts.shape)} texts, {len(captions)} captions")
    right = RightAnswers(image_of_text, captions, len(images))
    ranks_of_images, ranks_of_texts = _ranks(images, texts, right)
    return RetrievalMetrics(
        image_to_text=_summary(ranks_of_images, num_candidates=len(texts)),
        text_to_image=_summary(ranks_of_texts, num_candidates=len(images)),
    )


def unit_rows(embeddings: Tensor, what: str) -> Tensor:
    """(N, E) float64 rows of length 1 (a row of zeros stays zero) of `what` embeddings, named in the errors.

    Raises:
        DataError: there is no row, or one is not finite.
    """
    if embeddings.ndim != 2:
        raise ValueError(f"{what} embeddings: shape {tuple(embeddings.shape)} is not (N, E)")
    if not len(embeddings):
        raise DataError(f"{what} embeddings: there are none; evaluate data with at least one usable {what}")
    num_bad = int((~torch.isfinite(embeddings)).any(dim=1).sum())
    if num_bad:
        raise DataError(
            f"{what} embeddings: {num_bad} of {len(embeddings)} are NaN or infinite; the training diverged, "
            "use a smaller optimization.lr or full precision"
        )
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
    """Cosines (R, T) of R images with all texts and the mask of the right ones, one block of images after another."""
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
