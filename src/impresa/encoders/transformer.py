"""Pre-norm transformer blocks, shared by every tower that is trained from scratch.

Letters of shapes: B batch, N tokens, S tokens of all sequences laid end to end, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from impresa.config.encoder import EncoderConfig
from impresa.layers.attention import Attention
from impresa.layers.end_to_end import EndToEnd
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

    def forward(
        self,
        x: Tensor,
        only: Tensor | None = None,
        visible: Tensor | None = None,
        layout: EndToEnd | None = None,
    ) -> Tensor:
        """See `Transformer.forward`; `visible` (B, 1, 1, N) bool is true on tokens that may be read, None for all."""
        context = self.attention_norm(x)
        if only is not None:
            return self._only_at(only, x, context, visible, layout)
        if layout is None:
            read = self.attention(context, context, mask=visible, is_causal=self.causal)
        else:
            read = self.attention.read_end_to_end(context, layout, is_causal=self.causal)
        return self._after(x, read)

    def _only_at(
        self, only: Tensor, x: Tensor, context: Tensor, visible: Tensor | None, layout: EndToEnd | None
    ) -> Tensor:
        if layout is None:
            # By gather: exporters take the batch that take_along_dim meets for the only one.
            own = only[:, None, None].expand(-1, -1, x.shape[-1])
            x, query = x.gather(1, own), context.gather(1, own)
        else:
            own = layout.start + only
            x, query, context = x[own].unsqueeze(1), context[own].unsqueeze(1), layout.padded(context)
        if self.causal:  # up to the position itself
            visible = (torch.arange(context.shape[1], device=x.device) <= only[:, None])[:, None, None, :]
        return self._after(x, self.attention(query, context, mask=visible))  # (B, 1, D)

    def _after(self, x: Tensor, read: Tensor) -> Tensor:
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

    def forward(
        self, x: Tensor, only: Tensor | None = None, mask: Tensor | None = None, layout: EndToEnd | None = None
    ) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, 1, D) with `only` (B,) int64, the index of the one token of each sequence that
        is used: the last block then computes nothing else, with the same result. `mask` (B, N) bool is true where a
        token is real, for stacks that are not causal; None for everywhere. With a `layout`, which is for causal stacks,
        x is (S, D), and so is the result without `only`."""
        visible = None if mask is None else mask[:, None, None, :]
        *blocks, last = self.blocks
        for block in blocks:
            x = self._run(block, x, None, visible, layout)
        return self.norm(self._run(last, x, only, visible, layout))

    def _run(self, block: nn.Module, *inputs: Tensor | EndToEnd | None) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)
