"""Multi-layer perceptrons, token by token: (..., D) -> (..., D), or another width where that is asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from impresa.layers.init import init_linear


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


class MLP(nn.Module):
    """Two linear layers with an activation between them; `dim_out` is `dim` unless it is given."""

    def __init__(
        self, dim: int, dim_hidden: int, dim_out: int | None = None, *, activation: str = "gelu", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.up = nn.Linear(dim, dim_hidden)
        self.activation = ACTIVATIONS[activation]()
        self.down = nn.Linear(dim_hidden, dim if dim_out is None else dim_out)
        self.dropout = nn.Dropout(dropout)
        init_linear(self.up, std=dim**-0.5)
        init_linear(self.down, std=dim_hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(self.dropout(self.activation(self.up(x)))))


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases (SwiGLU, Shazeer 2020, arXiv:2002.05202); `damping` scales the start
    of what is added to the residual stream."""

    def __init__(self, dim: int, dim_hidden: int, *, damping: float) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, dim_hidden, bias=False)
        self.up = nn.Linear(dim, dim_hidden, bias=False)
        self.down = nn.Linear(dim_hidden, dim, bias=False)
        init_linear(self.gate, std=dim**-0.5)
        init_linear(self.up, std=dim**-0.5)
        init_linear(self.down, std=damping * dim_hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))
