"""Which embeddings of a batch are compared with which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from impresa.config.encoder import Modality
from impresa.config.losses import PairName
from impresa.errors import DataError

Embedded = Literal[Modality, "image+audio"]
"""The name of an embedding: a modality, or image and sound fused into one."""
FUSED: Literal["image+audio"] = "image+audio"
PAIRS: dict[PairName, tuple[Embedded, Embedded]] = {
    "image-text": ("image", "text"),
    "image-audio": ("image", "audio"),
    "text-audio": ("text", "audio"),
    "image+audio-text": (FUSED, "text"),
}


@dataclass(frozen=True)
class Negatives:
    """Captions that are right for no image of the batch."""

    embeddings: Tensor
    """(Q, E), not normalised."""
    keys: Tensor | None
    """(Q,) int64 on the CPU: equal to the key of an equal caption. An image that this caption is right for has no such
    negative. None: they are different from all captions."""


@dataclass(frozen=True)
class Pair:
    """Embeddings (n, E) of two modalities, not normalised, of samples that have both; row i of one belongs to row i of
    the other."""

    a: Tensor
    b: Tensor
    labels: Tensor | None
    """(n, L) int64 on the CPU; rows that are equal in one of the L columns belong together as well. The last is that of
    `b` itself."""
    negatives: Negatives | None = None
    """More of what `b` is, that rows of `a` are told from and that look for nothing themselves."""


def pairs_of(
    embeddings: Mapping[Embedded, Tensor],
    wanted: Sequence[PairName] | None,
    present: Mapping[Embedded, Tensor],
    keys: Mapping[Embedded, Tensor],
    negatives: Negatives | None = None,
) -> list[Pair]:
    """The pairs of modalities to align.

    Args:
        embeddings: (B, E) per modality; equal rows belong to the same sample.
        wanted: names of the pairs; None for all. Those with a modality that the batch lacks are left out.
        present: (B,) bool per modality that some samples lack, true where the sample has it.
        keys: (B,) int64 on the CPU per modality whose equal rows are known: the image of one sample belongs to the
            caption of another if their images are equal, or their captions. They are the labels of a pair.
        negatives: more captions, for the pair of image and text.

    Raises:
        DataError: the batch has none of the pairs.
    """
    names = tuple(PAIRS) if wanted is None else wanted
    found = [PAIRS[name] for name in names if embeddings.keys() >= set(PAIRS[name])]
    if not found:
        raise DataError(f"batch: has only {', '.join(embeddings)}; one of the pairs {', '.join(names)} is needed")
    pairs = []
    for both in found:
        known = [keys[name] for name in both if name in keys]
        a, b = (embeddings[name] for name in both)
        wrong = negatives if both == PAIRS["image-text"] else None
        pair = Pair(a, b, torch.stack(known, dim=1) if known else None, wrong)
        pairs.append(_both_present(pair, *(present.get(name) for name in both)))
    return pairs


def _both_present(pair: Pair, has_a: Tensor | None, has_b: Tensor | None) -> Pair:
    masks = [mask for mask in (has_a, has_b) if mask is not None]
    if not masks:
        return pair
    rows = torch.stack(masks).all(dim=0).nonzero().squeeze(1)
    labels = None if pair.labels is None else pair.labels[rows.cpu()]
    return Pair(pair.a[rows], pair.b[rows], labels, pair.negatives)
