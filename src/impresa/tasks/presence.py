"""Batches in which some samples lack a modality."""

from __future__ import annotations

from collections.abc import Callable

import torch

from impresa.encoders.output import EncoderOutput


def encode_rows(
    encode: Callable[..., EncoderOutput], present: torch.Tensor | None, *inputs: torch.Tensor | None
) -> EncoderOutput:
    """The output for the rows that are present, zero (false in the mask) elsewhere.

    The encoder sees no stand-ins, which would enter its memory or its batch norms, unless there is nothing else: every
    process must run every encoder.
    """
    if present is None:
        return encode(*inputs)
    rows = present.nonzero().squeeze(1)
    chosen = rows if len(rows) else rows.new_zeros(1)
    found = encode(*(tensor if tensor is None else tensor[chosen] for tensor in inputs))

    def spread(part: torch.Tensor | None) -> torch.Tensor | None:
        if part is None:
            return None
        return part.new_zeros(len(present), *part.shape[1:]).index_copy(0, rows, part[: len(rows)])

    pooled = spread(found.pooled)
    assert pooled is not None
    return EncoderOutput(pooled, spread(found.tokens), spread(found.mask))
