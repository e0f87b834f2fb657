"""Retrieval metrics: how well an image finds its texts, and a text its images, among all candidates, and by chance."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from math import expm1, lgamma

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from impresa.errors import DataError
from impresa.evaluation.bootstrap import PerQuery
from impresa.evaluation.results import RECALL_AT, DirectionMetrics, RetrievalMetrics

CHANCE = "chance"
"""Name of the baseline that guesses."""
TIE = 1e-9
"""Cosines closer than this are equal: the same two vectors can differ so much between two matrix products."""
CHUNK_ELEMENTS = 1 << 22
"""Scores held at once (float64: 32 MiB, and about as much again for comparisons)."""


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
        self.image_of_caption = pairs[:, 0]
        """(T,) int64: the image that each caption describes."""

    def mask(self, start: int, stop: int) -> Tensor:
        """(stop - start, G) bool, true where text g is right for image start + i."""
        first, last = torch.searchsorted(self._image, torch.tensor([start, stop])).tolist()
        is_right = torch.zeros(stop - start, len(self.texts), dtype=torch.bool)
        is_right[self._image[first:last] - start, self._text[first:last]] = True
        return is_right

    def pairs(self) -> tuple[Tensor, Tensor]:
        """(P,) images and (P,) texts that belong together, each pair once."""
        return self._image, self._text

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
    """R@1/5/10, MRR, mAP, NDCG, mean and median rank in both directions, by cosine similarity.

    The rank of a query is 1 + the number of wrong candidates that score at least as high as its best right one, so a
    tie counts against the model and a constant embedding cannot look good. mAP and NDCG judge the ranks of all right
    answers, of the j-th one j + such wrong candidates; every right answer is as good as another, and NDCG discounts by
    log2(1 + rank) without a cut. Captions that read the same are one candidate, right for each of their images; as
    queries they count as often as they occur.

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
    image, text = right.pairs()
    of_images, of_texts = _ranked(images, texts, image, text), _ranked(texts, images, text, image)
    with_text = image.unique()
    return RetrievalMetrics(
        image_to_text=_summary(of_images[with_text], with_text, right.num_images, num_candidates=len(texts)),
        text_to_image=_summary(
            of_texts[right.text_of_caption], right.image_of_caption, right.num_images, num_candidates=len(images)
        ),
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


def _ranked(queries: Tensor, candidates: Tensor, query: Tensor, candidate: Tensor) -> Tensor:
    """(Q, 3) float64: rank of the best right answer, average precision and NDCG of each query.

    `query` and `candidate` (P,) are the right pairs. Rows of queries without a right answer mean nothing.
    """
    ahead, scores = _wrong_ahead(queries, candidates, query, candidate)
    order = torch.argsort(scores, descending=True)
    order = order[torch.argsort(query[order], stable=True)]  # by query, the best answer first
    query, ahead = query[order], ahead[order].to(torch.float64)
    num_right = torch.bincount(query, minlength=len(queries))
    start = num_right.cumsum(0) - num_right
    place = torch.arange(1, len(query) + 1, dtype=torch.float64) - start[query]  # j: first, second, ... right answer
    rank = place + ahead

    def total(values: Tensor) -> Tensor:
        return torch.zeros(len(queries), dtype=torch.float64).index_add_(0, query, values)

    best = torch.ones(len(queries), dtype=torch.float64)
    first = place == 1
    best[query[first]] = rank[first]
    precision = total(place / rank) / num_right
    return torch.stack([best, precision, total(1 / (1 + rank).log2()) / total(1 / (1 + place).log2())], dim=1)


def _wrong_ahead(queries: Tensor, candidates: Tensor, query: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
    """For each of P right pairs the number of wrong candidates that score at least as high, and its own score."""
    order = torch.argsort(query, stable=True)
    ahead, scores = torch.empty(len(query), dtype=torch.int64), torch.empty(len(query), dtype=torch.float64)
    num_rows = max(1, CHUNK_ELEMENTS // len(candidates))
    bounds = torch.arange(0, len(queries) + num_rows, num_rows)
    ends = torch.searchsorted(query[order].contiguous(), bounds).tolist()
    for start, first, last in zip(bounds.tolist(), ends, ends[1:], strict=False):
        block = queries[start : start + num_rows] @ candidates.T
        pairs = order[first:last]
        rows, columns = query[pairs] - start, candidate[pairs]
        scores[pairs] = block[rows, columns]
        block[rows, columns] = -torch.inf
        for part in pairs.split(num_rows):  # a query with many right answers has its scores compared with each
            ahead[part] = (block[query[part] - start] >= scores[part, None] - TIE).sum(dim=1)
    return ahead, scores


def _summary(found: Tensor, item: Tensor, num_items: int, *, num_candidates: int) -> DirectionMetrics:
    """The metrics of (Q, 3) from `_ranked`; `item` (Q,) says which of the items each query belongs to."""
    rank, precision, ndcg = found.numpy().T
    scores = {"rank": rank, "mrr": 1 / rank, "map": precision, "ndcg": ndcg}
    return DirectionMetrics(
        recall_at={k: float((rank <= k).mean()) for k in RECALL_AT},
        mean_rank=float(rank.mean()),
        median_rank=float(np.quantile(rank, 0.5)),
        num_queries=len(rank),
        num_candidates=num_candidates,
        mrr=float(scores["mrr"].mean()),
        mean_average_precision=float(precision.mean()),
        ndcg=float(ndcg.mean()),
        queries=PerQuery(scores, item.numpy(), num_items),
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
    n = num_candidates
    inverse_rank = 1 / torch.arange(1, n + 1, dtype=torch.float64)
    gain = 1 / torch.arange(2, n + 2, dtype=torch.float64).log2()
    harmonic = float(inverse_rank.sum())

    def mean(expectation: Callable[[int], float]) -> float:
        return sum(count * expectation(right) for right, count in counts.items()) / num_queries

    def recall_at(k: int) -> float:
        return mean(lambda right: _hit_rate(right, n, k))

    return DirectionMetrics(
        recall_at={k: recall_at(k) for k in RECALL_AT},
        # The best of r right answers has (n - r) / (r + 1) wrong ones before it on average.
        mean_rank=mean(lambda right: 1 + (n - right) / (right + 1)),
        # The smallest rank that at least half of the queries reach.
        median_rank=float(1 + bisect_left(range(1, n), 0.5, key=recall_at)),
        num_queries=num_queries,
        num_candidates=n,
        mrr=mean(lambda right: float(inverse_rank @ _first_at(right, n))),
        # A place k has a right answer with probability r / n, and (k - 1)(r - 1) / (n - 1) of them before it then.
        mean_average_precision=mean(lambda right: (harmonic + (n - harmonic) * (right - 1) / max(n - 1, 1)) / n),
        ndcg=mean(lambda right: float(right / n * gain.sum() / gain[:right].sum())),
    )


def _first_at(num_right: int, num_candidates: int) -> Tensor:
    """(n,) probabilities that the best of r right answers stands at place k = 1..n: C(n-k, r-1) / C(n, r)."""
    n, places = num_candidates, torch.arange(1, num_candidates - num_right + 2, dtype=torch.float64)
    logs = torch.lgamma(n - places + 1) - torch.lgamma(n - places - num_right + 2) - lgamma(num_right)
    logs -= lgamma(n + 1) - lgamma(num_right + 1) - lgamma(n - num_right + 1)
    return F.pad(logs.exp(), (0, num_right - 1))


def _hit_rate(num_right: int, num_candidates: int, k: int) -> float:
    """Probability that k of n candidates, drawn at random, hold one of the r right: 1 - C(n-r, k) / C(n, k)."""
    num_wrong = num_candidates - num_right
    if k > num_wrong:
        return 1.0

    def log_choices(n: int) -> float:  # log C(n, k), up to a term of k alone
        return lgamma(n + 1) - lgamma(n - k + 1)

    return -expm1(log_choices(num_wrong) - log_choices(num_candidates))
