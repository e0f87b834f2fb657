"""The sigmoid loss (Zhai et al. 2023, arXiv:2303.15343), and where its bias starts."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from impresa.losses.clip import unit
from impresa.losses.gather import RowLayout, gather_rows, of_first, row_layout
from impresa.losses.objectives import num_right
from impresa.losses.pairs import Pair

logger = logging.getLogger(__name__)

BIAS_OF_LARGE_BATCHES = -8.0
LARGE_BATCH = 2000


def siglip_loss(a: Tensor, b: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """Sigmoid loss: every pair of rows is a yes-or-no question of its own.

    -log sigmoid(z * (logit_scale * cosine + logit_bias)) with z = 1 for equal rows and -1 for others, summed over all
    B * B pairs and divided by B; in nats, about 1 + ln B when the bias is right and nothing else is learned yet.
    `logit_bias` is a scalar; all else is as in `clip_loss`.
    """
    with torch.autocast(a.device.type, enabled=False):
        logits = logit_scale * unit(a) @ unit(b).T + logit_bias
        sign = 2 * torch.eye(len(logits), device=logits.device, dtype=logits.dtype) - 1
        return -F.logsigmoid(sign * logits).sum() / len(logits)


class LogitBias(nn.Module):
    """The bias b of the sigmoid loss, a parameter.

    With `auto` it starts where the loss of a model that cannot tell pairs apart is smallest: if all cosines are the
    same, that is where each pair is right with probability r / B for r right answers to a row (one, without equal
    samples), so that the logits are log(r) - log(B - r). Far below, a
    small batch learns nothing but the bias for a long time. The first training batch decides; `started` remembers.
    """

    started: Tensor

    def __init__(self, start: float | Literal["auto"]) -> None:
        super().__init__()
        self.is_automatic = start == "auto"
        self.value = nn.Parameter(torch.tensor(0.0 if start == "auto" else start))
        self.register_buffer("started", torch.tensor(False))

    def forward(self, pairs: Sequence[Pair], logit_scale: Tensor, *, gather: bool) -> Tensor:
        """The bias for a batch of `pairs` whose cosines are multiplied by `logit_scale`, rows being compared with those
        of all processes under `gather`. An evaluation before the first training batch changes nothing."""
        if self.started:
            return self.value
        floors, num_rows = self._floors(pairs, logit_scale.detach(), gather)
        floor = torch.stack(floors).mean() if floors else torch.full_like(logit_scale.detach(), math.nan)
        if self.training and not gather:
            floor = of_first(floor)  # the bias is one for all processes, and that of a run with a single one
        if floor.isnan():
            return self.value
        if not self.training:
            return floor if self.is_automatic else self.value
        if self.is_automatic:
            self.value.data.copy_(floor)
        elif self.value <= BIAS_OF_LARGE_BATCHES and num_rows < LARGE_BATCH:
            logger.warning(
                f"losses.siglip_bias: {self.value.item():g} is for batches of tens of thousands, not of {num_rows:g}; "
                "the model may learn nothing but the bias for long, `auto` starts it where learning begins"
            )
        self.started.fill_(True)
        return self.value

    @torch.no_grad()
    def _floors(self, pairs: Sequence[Pair], logit_scale: Tensor, gather: bool) -> tuple[list[Tensor], float]:
        """The best start for each pair, and the number of rows compared, of the rows that meet in the loss."""
        floors, num_rows = [], 0.0
        for pair in pairs:
            layout = row_layout(pair.a, gather=gather)
            if layout.total:
                num_rows = layout.total
                mean_a, mean_b = (gather_rows(unit(x), layout).mean(dim=0) for x in (pair.a, pair.b))
                num_columns = num_rows + _num_negatives(pair, gather)
                right = _mean_right(pair, layout)
                floor = math.log(right) - math.log(max(num_columns - right, 1))
                floors.append(floor - logit_scale * (mean_a * mean_b).sum())
        return floors, num_rows


def _num_negatives(pair: Pair, gather: bool) -> int:
    """Hard negatives that a row is compared with."""
    return 0 if pair.negatives is None else row_layout(pair.negatives.embeddings, gather=gather).total


def _mean_right(pair: Pair, layout: RowLayout) -> float:
    """Right answers to a row of a pair, on average."""
    if pair.labels is None:
        return 1.0
    return num_right(gather_rows(pair.labels.to(pair.a.device), layout).cpu().unbind(dim=1)).mean().item()
