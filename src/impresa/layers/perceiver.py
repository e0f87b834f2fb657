"""Perceiver resampler: compresses any number of tokens into a fixed number of latents.

Source: "Flamingo: a Visual Language Model for Few-Shot Learning" (Alayrac et al. 2022), section 3.1.1 and figure 5,
without its embedding of time; bias-free projections and ReLU as in the open reproduction IDEFICS.

Letters of shapes: B batch, N tokens, M latents, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from impresa.errors import CheckpointError, ConfigError
from impresa.layers.attention import Attention
from impresa.layers.init import init_linear


class PerceiverStack(nn.Module):
    """Layers in which latents read tokens, and the norm after them; a subclass holds the latents.

    Args:
        dim: width D of tokens and latents.
        num_layers: how often the latents read.
        num_heads: attention heads, a divisor of D.
        mlp_ratio: hidden width of the MLPs as a multiple of D.
    """

    def __init__(self, *, dim: int, num_layers: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            PerceiverLayer(dim=dim, num_heads=num_heads, mlp_ratio=mlp_ratio, damping=(2 * num_layers) ** -0.5)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def read(self, latents: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Latents (M, D) read tokens (B, N, D) with their mask (B, N) bool (None: all real) and become (B, M, D)."""
        latents = latents.expand(tokens.shape[0], -1, -1)
        visible = None
        if mask is not None:  # of tokens and latents: the latents always see one another
            visible = F.pad(mask, (0, latents.shape[1]), value=True)[:, None, None, :]
        for layer in self.layers:
            latents = layer(latents, tokens, visible)
        return self.norm(latents)


class PerceiverResampler(PerceiverStack):
    """M learned latents read the tokens of one modality; see `PerceiverStack` for the other arguments.

    Args:
        num_latents: M, the number of tokens that come out.

    Raises:
        ConfigError: `dim` is no multiple of `num_heads`.
        CheckpointError: the latents of a loaded state dict are all equal.
    """

    def __init__(
        self, *, dim: int, num_latents: int = 64, num_layers: int = 3, num_heads: int = 8, mlp_ratio: float = 4.0
    ) -> None:
        if dim % num_heads:
            fault = f"{num_heads} heads do not divide the width {dim}"
            raise ConfigError(f"perceiver_num_heads: {fault}; choose a divisor of {dim}")
        super().__init__(dim=dim, num_layers=num_layers, num_heads=num_heads, mlp_ratio=mlp_ratio)
        self.latents = nn.Parameter(nn.init.normal_(torch.empty(num_latents, dim), std=0.02))
        self.register_load_state_dict_pre_hook(_refuse_equal_latents)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, N, D) with their mask (B, N) bool (None: all real) -> latents (B, M, D), all of them real."""
        return self.read(self.latents, tokens, mask)


class PerceiverLayer(nn.Module):
    """Pre-norm cross-attention from the latents to tokens and latents together, then a pre-norm MLP, both residual.

    Weights start normal with a variance of one over their fan-in; `damping` scales what is added to the residual
    stream, so that its size at the start does not grow with the depth.
    """

    def __init__(self, *, dim: int, num_heads: int, mlp_ratio: float, damping: float) -> None:
        super().__init__()
        dim_hidden = round(dim * mlp_ratio)
        self.norm_tokens = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads, bias=False)
        self.norm_mlp = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, dim_hidden, bias=False)
        self.down = nn.Linear(dim_hidden, dim, bias=False)
        init_linear(self.attention.out, std=damping * dim**-0.5)
        init_linear(self.up, std=dim**-0.5)
        init_linear(self.down, std=damping * dim_hidden**-0.5)

    def forward(self, latents: Tensor, tokens: Tensor, visible: Tensor | None) -> Tensor:
        """(B, M, D) latents and (B, N, D) tokens to (B, M, D); `visible` is (B, 1, 1, N + M) bool or None."""
        queries = self.norm_latents(latents)
        latents = latents + self.attention(queries, torch.cat((self.norm_tokens(tokens), queries), dim=1), mask=visible)
        return latents + self.down(F.relu(self.up(self.norm_mlp(latents))))


def _refuse_equal_latents(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Refuse equal latents: they get equal gradients, so they would stay equal and do the work of a single one."""
    latents = state.get(f"{prefix}latents")
    if latents is not None and len(latents) > 1 and bool((latents == latents[:1]).all()):
        fault = f"all {len(latents)} latents are equal and would stay so"
        raise CheckpointError(f"{prefix}latents: {fault}; start them from random values")
