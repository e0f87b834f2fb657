"""Which embeddings of a batch are compared with which."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from impresa.config.experiment import Modality, PairName
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
class Pair:
    """Embeddings (n, E) of two modalities, not normalised, of samples that have both; equal rows belong together."""

    a: Tensor
    b: Tensor
    labels: Tensor | None
    """(n,) int64; rows with equal labels belong together as well."""


def pairs_of(
    embeddings: Mapping[Embedded, Tensor],
    wanted: Sequence[PairName] | None,
    present: Mapping[Embedded, Tensor],
    labels: Tensor | None,
) -> list[Pair]:
    """The pairs of modalities to align.

    Args:
        embeddings: (B, E) per modality; equal rows belong to the same sample.
        wanted: names of the pairs; None for all. Those with a modality that the batch lacks are left out.
        present: (B,) bool per modality that some samples lack, true where the sample has it.
        labels: (B,) int64, see `Pair.labels`.

    Raises:
        DataError: the batch has none of the pairs.
    """
    names = tuple(PAIRS) if wanted is None else wanted
    pairs = [PAIRS[name] for name in names if embeddings.keys() >= set(PAIRS[name])]
    if not pairs:
        raise DataError(f"batch: has only {', '.join(embeddings)}; one of the pairs {', '.join(names)} is needed")
    return [_both_present(Pair(embeddings[a], embeddings[b], labels), present.get(a), present.get(b)) for a, b in pairs]


def _both_present(pair: Pair, has_a: Tensor | None, has_b: Tensor | None) -> Pair:
    masks = [mask for mask in (has_a, has_b) if mask is not None]
    if not masks:
        return pair
    rows = torch.stack(masks).all(dim=0).nonzero().squeeze(1)
    return Pair(pair.a[rows], pair.b[rows], None if pair.labels is None else pair.labels[rows])


def caption_labels(captions: Sequence[str], device: torch.device) -> Tensor:
    """(B,) int64, equal for identical captions and for no others; the same in every process and on every machine."""
    digests = (hashlib.blake2b(caption.encode(), digest_size=8).digest() for caption in captions)
    return torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests], dtype=torch.int64, device=device)
