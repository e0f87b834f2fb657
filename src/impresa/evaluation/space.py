"""Geometry of embeddings: how close pairs are, how evenly all of them lie, how many directions they use.

All are computed in float64 of embeddings that are scaled to length one. Their intervals over items stand on what each
item adds to them to first order (Efron 1982, the infinitesimal jackknife), so that nothing is computed again for a
resample.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from impresa.evaluation.bootstrap import Floats, Statistic, totals
from impresa.evaluation.results import EmbeddingSpace, ModalitySpace
from impresa.evaluation.retrieval import CHUNK_ELEMENTS, RightAnswers, unit_rows

TEMPERATURE = 2.0
"""t of the uniformity."""
MAX_UNIFORMITY_ROWS = 4096
"""Rows, at even distances, whose pairs the uniformity is taken over."""


def embedding_space(embeddings: Mapping[str, Tensor], right: RightAnswers | None = None) -> EmbeddingSpace:
    """The geometry of each modality, and of images with their captions.

    Args:
        embeddings: by modality (N, E), of any scale; those of `text` are the different texts of `right`.
        right: which text belongs to which image; None where there are no captions.
    """
    rows = {name: unit_rows(found, name) for name, found in embeddings.items() if len(found)}
    modalities = {name: _modality(found) for name, found in rows.items()}
    if right is None:
        return EmbeddingSpace(modalities)
    statistics = _of_pairs(rows["image"], rows["text"], right)
    return EmbeddingSpace(
        modalities, **{name: found.value for name, found in statistics.items()}, statistics=statistics
    )


def _modality(rows: Tensor) -> ModalitySpace:
    statistics = {"effective_rank": _effective_rank(rows)}
    if len(rows) > 1:
        statistics["uniformity"] = _uniformity(rows)
    return ModalitySpace(
        num_rows=len(rows),
        uniformity=statistics["uniformity"].value if len(rows) > 1 else None,
        effective_rank=statistics["effective_rank"].value,
        statistics=statistics,
    )


def _uniformity(rows: Tensor) -> Statistic:
    """log of the mean of exp(-t d^2) over all pairs of different rows, each of which has a mean over its pairs."""
    num = min(MAX_UNIFORMITY_ROWS, len(rows))
    rows = rows[torch.arange(num) * len(rows) // num]
    means = torch.empty(num, dtype=torch.float64)
    size = max(1, CHUNK_ELEMENTS // num)
    for start in range(0, num, size):
        block = rows[start : start + size]
        # |x - y|^2 = |x|^2 + |y|^2 - 2 xy; a row of zeros stays one, so lengths are not taken for granted.
        squared = block.square().sum(dim=1)[:, None] + rows.square().sum(dim=1) - 2 * block @ rows.T
        kernel = torch.exp(-TEMPERATURE * squared.clamp(min=0))
        kernel[torch.arange(len(block)), torch.arange(start, start + len(block))] = 0
        means[start : start + size] = kernel.sum(dim=1) / (num - 1)
    mean = float(means.mean())

    def of_ratios(ratios: Floats) -> Floats:
        # Both rows of a pair are drawn, so that the mean over pairs moves twice as far as the mean over rows.
        found: Floats = np.log(np.maximum(2 * ratios[0] - mean, 1e-300))
        return found

    return Statistic((means.numpy(),), (np.ones(num),), of_ratios)


def _effective_rank(rows: Tensor) -> Statistic:
    """exp of the entropy of the singular values as shares of their sum."""
    is_wide = rows.shape[1] > len(rows)  # then the products of rows have the same eigenvalues, and are fewer
    eigenvalues, directions = torch.linalg.eigh(rows @ rows.T if is_wide else rows.T @ rows)
    # Rounding leaves eigenvalues of that size in directions that no row has.
    least = eigenvalues[-1].clamp(min=0) * max(rows.shape) * torch.finfo(torch.float64).eps
    used = eigenvalues > least
    singular = eigenvalues[used].sqrt()
    if not len(singular):  # nothing but zeros
        return Statistic((np.zeros(len(rows)),), (np.ones(len(rows)),))
    shares = singular / singular.sum()
    entropy = -(shares * shares.log()).sum()
    rank = float(entropy.exp())
    # The rank changes by this much for each unit that a row adds to an eigenvalue.
    slope = -rank * (shares.log() + entropy) / singular.sum() / (2 * singular)
    along = directions[:, used] * singular if is_wide else rows @ directions[:, used]  # (N, R) parts of each row
    pulls = along.square() @ slope * len(rows)
    pulls -= pulls.mean()

    def of_ratios(ratios: Floats) -> Floats:
        found: Floats = rank + ratios[0]
        return found

    return Statistic((pulls.numpy(),), (np.ones(len(rows)),), of_ratios)


def _of_pairs(images: Tensor, texts: Tensor, right: RightAnswers) -> dict[str, Statistic]:
    """Alignment and modality gap over the images that have captions; every caption counts."""
    image, text = right.image_of_caption, right.text_of_caption
    num_captions = torch.bincount(image, minlength=len(images)).double().numpy()
    distances = torch.cat(
        [
            (images[i] - texts[t]).square().sum(dim=1)
            for i, t in zip(image.split(1 << 14), text.split(1 << 14), strict=True)
        ]
    )
    described = torch.from_numpy(num_captions > 0)
    mean_text = torch.bincount(text, minlength=len(texts)).double() @ texts / len(text)
    apart = images[described].mean(dim=0) - mean_text
    gap = torch.linalg.vector_norm(apart)
    # Along the line from one mean to the other each embedding is a number, and the gap a difference of two means.
    line = apart / gap.clamp(min=1e-300)
    on_image, on_text = images @ line * described, (texts @ line)[text]
    sums = [totals(found.numpy(), image.numpy(), len(images)) for found in (distances, on_text)]

    def of_ratios(ratios: Floats) -> Floats:
        found: Floats = ratios[0] - ratios[1]
        return found

    return {
        "alignment": Statistic((sums[0],), (num_captions,)),
        "modality_gap": Statistic((on_image.numpy(), sums[1]), (described.double().numpy(), num_captions), of_ratios),
    }
