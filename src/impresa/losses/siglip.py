"""The sigmoid loss (Zhai et al. 2023, arXiv:2303.15343), and where its bias starts."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from impresa.losses.clip import unit


def siglip_loss(a: Tensor, b: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """Sigmoid loss: every pair of rows is a yes-or-no question of its own.

    -log sigmoid(z * (logit_scale * cosine + logit_bias)) with z = 1 for equal rows and -1 for others, summed over all
    B * B pairs and divided by B. Computed in float32 at least, under autocast too.

    Args:
        a, b: (B, E) embeddings, not normalised; row i of one belongs to row i of the other.
        logit_scale: scalar, exp(t').
        logit_bias: scalar, b.

    Returns:
        Scalar, in nats; 1 + ln B, or a little less, when the bias is right and nothing else is learned yet.
    """
    with torch.autocast(a.device.type, enabled=False):
        logits = logit_scale * unit(a) @ unit(b).T + logit_bias
        sign = 2 * torch.eye(len(logits), device=logits.device, dtype=logits.dtype) - 1
        return -F.logsigmoid(sign * logits).sum() / len(logits)


def floor_bias(mean_cosine: Tensor, logit_scale: Tensor, num_rows: int) -> Tensor:
    """The bias under which the loss of a model that cannot tell pairs apart is smallest.

    If all cosines are the same, the loss is least where each pair is right with probability 1 / B, that is where the
    logits are -log(B - 1). Far below (the paper's -10 is for B of tens of thousands) a small batch learns nothing but
    the bias for a long time.

    Args:
        mean_cosine: scalar, mean over all pairs of rows.
        logit_scale: scalar, exp(t').
        num_rows: B, the rows that are contrasted with one another.

    Returns:
        Scalar, without gradient.
    """
    return -math.log(max(num_rows - 1, 1)) - (logit_scale * mean_cosine).detach()
