"""Memory tokens: learned tokens beside the patches of a ViT, with a running state that outlives the batch.

Letters of shapes: B batch, N patches, M memory tokens, D width of the ViT, d width of the memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, distributed, nn

from impresa.config.types import MemoryConfig
from impresa.layers.attention import Attention, fitting_heads
from impresa.layers.init import drawn


class MemoryTokens(nn.Module):
    """M tokens that read the patches of an image before both go through the blocks.

    With learned tokens P, learned slot embeddings E_s, running state S and a = `mem_alpha`:

        m  = P + E_s + a * stop_gradient(S)
        r  = W_o MHA(LN(m), LN(patches))
        m' = a * r + (1 - a) * m            `attention`; `gated` has one learned gate per token in place of a
        m' = P + E_s                        `static`, and whatever the update when a = 0

    S is a buffer that starts at zero. The forward pass only reads it and, in training, adds up r; `commit` folds the
    mean of r into S once per optimizer step. In eval mode S is constant, so no embedding depends on its batch.
    After every `mem_reinit_steps`-th step S is reset, but only for the training passes that follow: an evaluation or a
    checkpoint before them still has the state that the weights were trained with.

    The slot embeddings keep tokens apart that start equal (`zeros`), and give every token its own gradient.

    Args:
        config: the memory's settings.
        dim_model: D; linear layers lead in and out when the memory's own width d is another.
        num_heads: heads of the read-out; when they do not divide d, the largest smaller number that does.
    """

    state: Tensor
    reset_pending: Tensor
    initialised: Tensor

    def __init__(self, config: MemoryConfig, dim_model: int, num_heads: int) -> None:
        super().__init__()
        self.config = config
        num_tokens, dim = config.num_memory_tokens, config.dim
        self.tokens = nn.Parameter(_start(config))
        self.slots = nn.Parameter(drawn(num_tokens, dim, std=0.02))
        self.write = _linear(dim, dim_model)
        # Buffers, so that a resumed run continues exactly. The sum between commits is no buffer: DDP would overwrite it
        # with rank 0's at the next forward pass.
        if config.memory_init == "features":
            self.register_buffer("initialised", torch.tensor(False))
        self.is_static = config.memory_update == "static" or config.mem_alpha == 0
        if self.is_static:
            return
        self.register_buffer("state", torch.zeros(num_tokens, dim))
        self.register_buffer("reset_pending", torch.tensor(False))
        self.read = _linear(dim_model, dim)
        self.token_norm = nn.LayerNorm(dim)
        self.patch_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, fitting_heads(dim, num_heads))
        self.gate = _gate(dim, config.mem_alpha) if config.memory_update == "gated" else None
        self._sum: Tensor | None = None
        self._count = 0

    def forward(self, patches: Tensor) -> Tensor:
        """Patch embeddings (B, N, D) -> memory tokens (B, M, D)."""
        if self.awaits_start:
            self.start_from(patches)
        tokens = self.tokens + self.slots
        if self.is_static:
            return self.write(tokens).expand(patches.shape[0], -1, -1)
        memory = (tokens + self.config.mem_alpha * self._visible_state()).unsqueeze(0)
        read = self.attention(self.token_norm(memory), self.patch_norm(self.read(patches)))
        if self.training and _counts.get() and not _is_recomputation():
            self._add_up(read.detach())
        alpha = self._blend(memory, read)
        return self.write(alpha * read + (1 - alpha) * memory)

    @property
    def awaits_start(self) -> bool:
        """True before the first training batch of tokens that start as patches of it (`memory_init: features`)."""
        return self.training and self.config.memory_init == "features" and not bool(self.initialised)

    @torch.no_grad()
    def start_from(self, patches: Tensor) -> None:
        """Make the tokens patch embeddings of this batch, of the rows of all ranks, drawn by rank 0."""
        candidates = patches.flatten(0, 1) if _counts.get() else patches[:0, 0]
        counts = _counts_of_ranks(candidates)
        total, first = sum(counts), sum(counts[: distributed.get_rank()]) if _is_distributed() else 0
        draw = torch.randperm(total)[torch.arange(len(self.tokens)) % total].to(candidates.device)
        if _is_distributed():
            distributed.broadcast(draw, src=0)
        own = draw - first
        is_here = (own >= 0) & (own < len(candidates))
        chosen = candidates.new_zeros(len(draw), candidates.shape[1])
        chosen[is_here] = candidates[own[is_here]]
        if _is_distributed():
            distributed.all_reduce(chosen)  # each row is that of one rank and zero on the others
        chosen = chosen.to(self.tokens.dtype)
        if isinstance(self.write, nn.Linear):
            # The weight starts semi-orthogonal, so that its transpose is its pseudo-inverse.
            chosen = chosen @ self.write.weight
        self.tokens.copy_(chosen)
        self.initialised.fill_(True)

    @torch.no_grad()
    def commit(self, step: int) -> None:
        """Update the state; to be called once after each optimizer step, on every rank.

        S <- b * S + (1 - b) * mean(r), b = `memory_momentum`, the mean over all samples that all ranks have seen in
        training mode since the last call. Without any, S stays.

        Args:
            step: optimizer steps done since the start of the training run, from 1.
        """
        if self.is_static:
            return
        total, count = self._total()
        if count:
            momentum = self.config.memory_momentum
            kept = self.state.masked_fill(self.reset_pending, 0)
            self.state.copy_(momentum * kept + (1 - momentum) * total / count)
            self.reset_pending.fill_(False)
        if self.config.mem_reinit_steps and step % self.config.mem_reinit_steps == 0:
            self.reset_pending.fill_(True)

    def _visible_state(self) -> Tensor:
        visible = self.state.masked_fill(self.reset_pending, 0) if self.training else self.state
        return visible.to(self.tokens.dtype)  # among weights of 16 bits the state keeps its precision

    def _blend(self, memory: Tensor, read: Tensor) -> Tensor | float:
        if self.gate is None:
            return self.config.mem_alpha
        return torch.sigmoid(self.gate(torch.cat([memory.expand_as(read), read], dim=-1)))  # (B, M, 1)

    def _add_up(self, read: Tensor) -> None:
        total = read.sum(dim=0, dtype=torch.promote_types(read.dtype, torch.float32))
        self._sum = total if self._sum is None else self._sum + total
        self._count += len(read)

    def _total(self) -> tuple[Tensor, float]:
        total = torch.zeros_like(self.state) if self._sum is None else self._sum
        count = float(self._count)
        self._sum, self._count = None, 0
        if _is_distributed():
            packed = torch.cat([total.flatten(), total.new_tensor([count])])
            distributed.all_reduce(packed)
            total, count = packed[:-1].view_as(total), packed[-1].item()
        return total, count


_counts: ContextVar[bool] = ContextVar("_counts", default=True)


@contextmanager
def unread() -> Iterator[None]:
    """Forward passes of rows that stand for none: no memory remembers them."""
    before = _counts.set(False)
    try:
        yield
    finally:
        _counts.reset(before)


def _start(config: MemoryConfig) -> Tensor:
    tokens = torch.empty(config.num_memory_tokens, config.dim)
    if config.memory_init == "zeros":
        return nn.init.zeros_(tokens)
    if config.memory_init == "orthogonal":
        return nn.init.orthogonal_(tokens)
    return nn.init.normal_(tokens, std=0.02)  # for `features` too: an evaluation before the first batch sees them


def _counts_of_ranks(rows: Tensor) -> list[int]:
    """Number of these rows on each rank; every rank must ask."""
    if not _is_distributed():
        return [len(rows)]
    own = torch.tensor(len(rows), device=rows.device)
    counts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, own)
    return [int(count) for count in counts]


def _linear(dim_in: int, dim_out: int) -> nn.Module:
    if dim_in == dim_out:
        return nn.Identity()
    linear = nn.Linear(dim_in, dim_out)
    nn.init.orthogonal_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _gate(dim: int, alpha: float) -> nn.Linear:
    gate = nn.Linear(2 * dim, 1)
    nn.init.zeros_(gate.weight)
    start = min(max(alpha, 0.01), 0.99)
    nn.init.constant_(gate.bias, math.log(start / (1 - start)))
    return gate


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _is_recomputation() -> bool:
    # Activation checkpointing of any kind repeats a forward pass from inside the backward pass.
    return torch._C._current_graph_task_id() != -1
