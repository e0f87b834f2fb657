"""Symmetric InfoNCE, plainly: the reference for the faster forms in `impresa.losses.matryoshka`.

Letters of shapes: B batch, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from impresa.layers.norms import at_least_float32

EPS = 1e-6
"""Smallest norm that an embedding is divided by."""


def clip_loss(a: Tensor, b: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE (Radford et al. 2021, arXiv:2103.00020): mean of the cross-entropies of finding b from a and
    a from b, the logits being `logit_scale` times the cosines. Computed in float32 at least, under autocast too.

    Args:
        a, b: (B, E) embeddings, not normalised; row i of one belongs to row i of the other.
        logit_scale: scalar.

    Returns:
        Scalar, in nats; ln B when nothing is learned yet.
    """
    with torch.autocast(a.device.type, enabled=False):
        logits = logit_scale * unit(a) @ unit(b).T
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def unit(embedding: Tensor) -> Tensor:
    """(B, E) scaled to length one, in float32 at least; a zero vector stays zero and has a bounded gradient."""
    return F.normalize(at_least_float32(embedding), dim=-1, eps=EPS)
