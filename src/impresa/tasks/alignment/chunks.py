"""A batch encoded in chunks: the negatives of a large batch with the activations of a small one.

The embeddings of all chunks are there before the loss, their activations are not: the backward pass of the loss gives
each chunk the gradient of its embeddings, and the chunk is encoded a second time to pass it on (GradCache, Gao et al.
2021, arXiv:2101.06983). Both times it draws the same random numbers. All of this is one backward pass, so that
processes exchange each gradient once, when the last chunk has added to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from impresa.encoders.output import EncoderOutput
from impresa.errors import ConfigError


def in_chunks(encode: Callable[..., EncoderOutput], size: int | None) -> Callable[..., EncoderOutput]:
    """The same function of a batch, computed for `size` rows at a time and anew in the backward pass.

    Args:
        encode: from tensors of B rows, or None, to the output of these rows, each of which depends on its own row.
        size: most rows at a time; None for all of them, whose activations are kept.
    """
    if size is None:
        return encode

    def encode_all(*inputs: Tensor | None) -> EncoderOutput:
        num_rows = next(len(tensor) for tensor in inputs if tensor is not None)
        if num_rows <= size:
            return encode(*inputs)
        chunks = zip(*(repeat(None) if tensor is None else tensor.split(size) for tensor in inputs), strict=False)
        return _joined([checkpoint(encode, *chunk, use_reentrant=False) for chunk in chunks])

    return encode_all


def _joined(parts: Sequence[EncoderOutput]) -> EncoderOutput:
    pooled = torch.cat([part.pooled for part in parts])
    tokens, mask, memory = zip(*((part.tokens, part.mask, part.memory) for part in parts), strict=True)
    return EncoderOutput(pooled, *(None if of[0] is None else torch.cat(of) for of in (tokens, mask, memory)))


def check_rows_are_independent(model: nn.Module) -> None:
    """Refuse encoders in which the rows of a batch change each other.

    Raises:
        ConfigError: one of them trains with batch norms.
    """
    model.train()
    for part, encoder in model.named_children():
        if any(isinstance(module, _BatchNorm) and module.training for module in encoder.modules()):
            fault = f"{part} has batch norms, which see a whole batch or another one in each chunk"
            raise ConfigError(f"optimization.chunk_size: {fault}; set {part}.freeze=true, or leave it out")
