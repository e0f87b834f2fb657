"""Pre-norm transformer blocks, shared by every tower that is trained from scratch.

Letters of shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from impresa.config.encoder import EncoderConfig
from impresa.layers.attention import Attention
from impresa.layers.init import init_linear
from impresa.layers.mlp import MLP


class Block(nn.Module):
    """A pre-norm transformer block: self-attention and MLP, each added to its input."""

    def __init__(self, config: EncoderConfig, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.attention_norm = nn.LayerNorm(config.dim)
        self.attention = Attention(config.dim, config.num_heads, dropout=config.attn_drop_rate)
        self.dropout = nn.Dropout(config.drop_rate)
        self.mlp_norm = nn.LayerNorm(config.dim)
        self.mlp = MLP(
            config.dim, round(config.dim * config.mlp_ratio), activation=config.activation, dropout=config.drop_rate
        )
        # CLIP's rule: what is added to the residual stream shrinks with the number of additions (two per block).
        residual_std = config.dim**-0.5 * (2 * config.depth) ** -0.5
        init_linear(self.attention.out, std=residual_std)
        init_linear(self.mlp.up, std=(2 * config.dim) ** -0.5)
        init_linear(self.mlp.down, std=residual_std)

    def forward(self, x: Tensor, only: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        """See `Transformer.forward`; `visible` (B, 1, 1, N) bool is true on tokens that may be read, None for all."""
        context = self.attention_norm(x)
        if only is None:
            read = self.attention(context, context, mask=visible, is_causal=self.causal)
        else:
            if self.causal:  # up to the position itself
                visible = (torch.arange(x.shape[1], device=x.device) <= only[:, None])[:, None, None, :]
            # By gather: exporters take the batch that take_along_dim meets for the only one.
            own = only[:, None, None].expand(-1, -1, x.shape[-1])
            read = self.attention(context.gather(1, own), context, mask=visible)  # (B, 1, D)
            x = x.gather(1, own)
        x = x + self.dropout(read)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """A stack of pre-norm blocks and the norm after them.

    Args:
        config: the tower's settings.
        causal: token i sees tokens 0 to i. Sequences padded on the right then need no mask: no real token sees padding.
    """

    def __init__(self, config: EncoderConfig, *, causal: bool = False) -> None:
        super().__init__()
        self.activation_checkpointing = config.activation_checkpointing
        self.blocks = nn.ModuleList(Block(config, causal=causal) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, only: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, 1, D) with `only` (B,) int64, the index of the one token of each sequence that
        is used: the last block then computes nothing else, with the same result. `mask` (B, N) bool is true where a
        token is real, for stacks that are not causal; None for everywhere."""
        visible = None if mask is None else mask[:, None, None, :]
        *blocks, last = self.blocks
        for block in blocks:
            x = self._run(block, x, None, visible)
        return self.norm(self._run(last, x, only, visible))

    def _run(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)
