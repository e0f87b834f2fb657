"""Latent recursion: one small network that refines an answer and the reasoning behind it, again and again.

Source: "Less is More: Recursive Reasoning with Tiny Networks" (Jolicoeur-Martineau 2025, arXiv:2510.04871). The paper's
network sees a whole puzzle at once and has a fixed length. Ours is causal and writes text: that is our own design and
not the paper's. It is also pre-norm, where the paper's is post-norm: in small trials of recall pre-norm learned faster
with each of two seeds, and with one of them post-norm never left chance.

Letters of shapes: B batch, S new positions, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from impresa.config.decoder import RecursionConfig
from impresa.decoders.causal_network import AttentionInputs, CausalNetwork
from impresa.decoders.context import CausalContext, SharedPast
from impresa.errors import ConfigError
from impresa.layers.attention import fitting_heads
from impresa.layers.norms import rms_normalise

_HEAD_DIM = 64


class LatentRecursion(nn.Module):
    """States H (answer) and Z (reasoning) that a causal network f updates, given the sequence X.

        cycle:  Z <- f(Z + H + X), n times, then H <- f(H + Z)
        round:  K cycles, all but the last without gradient
        whole:  N rounds; between two of them the states are detached

    X is absent from the update of H: by that f tells its two tasks apart. X and a given start of H are brought to a
    root mean square of one at each position, which is the scale of the states. Every pass of f is causal, so the whole
    is, however deep. Each (round, cycle, step, layer) has a slot of its own in the cache.

    With `config.recursive` false it is the control of equal parameters: H = f(X), once.

    Args:
        config: K, n, N, the blocks of f and its dropout.
        dim: D.
        num_heads: attention heads of f.
        mlp_ratio: hidden width of the MLPs of f as a multiple of D.
        activation_checkpointing: recompute each pass of f in the backward pass.

    Raises:
        ConfigError: `num_heads` does not fit `dim`.
    """

    answer: Tensor
    """(D,), the fixed start of H at every position: a buffer, not trained."""
    reasoning: Tensor
    """(D,), the fixed start of Z."""

    def __init__(
        self,
        config: RecursionConfig,
        *,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        self.head_dim = dim // num_heads
        self.network = CausalNetwork(
            dim=dim, num_layers=config.num_layers, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=config.dropout
        )
        if config.recursive:
            self.register_buffer("answer", nn.init.trunc_normal_(torch.empty(dim)))
            self.register_buffer("reasoning", nn.init.trunc_normal_(torch.empty(dim)))

    @property
    def num_slots(self) -> int:
        """Number of slots of the cache that a call fills: one for each layer of each pass of f."""
        config = self.config
        passes = config.num_rounds * config.num_cycles * (config.num_steps + 1) if config.recursive else 1
        return passes * config.num_layers

    def forward(self, x: Tensor, start: Tensor | None, context: CausalContext) -> tuple[Tensor, ...]:
        """Recurse.

        Args:
            x: X (B, S, D).
            start: (B, S, D), H before the first cycle. None: the fixed start.
            context: what each position may see, and the cache.

        Returns:
            H (B, S, D) after each of the N rounds, with a root mean square of one; the last is the answer.

        Raises:
            ConfigError: the cache cannot grow beyond the layers that it was made for.
        """
        _check_room(context)
        x = rms_normalise(x)
        inputs = AttentionInputs.of(context, self.head_dim)
        slots = iter(range(context.first_slot, context.first_slot + self.num_slots, self.config.num_layers))
        if not self.config.recursive:
            return (self._refine(x, inputs, slots),)
        answer = self.answer.to(x.dtype).expand_as(x) if start is None else rms_normalise(start)
        reasoning = self.reasoning.to(x.dtype).expand_as(x)
        rounds = []
        for _ in range(self.config.num_rounds):
            with torch.no_grad():
                for _ in range(self.config.num_cycles - 1):
                    answer, reasoning = self._cycle(x, answer, reasoning, inputs, slots)
            # Older releases of PyTorch would reuse the 16-bit weights that autocast made without gradient.
            torch.clear_autocast_cache()
            answer, reasoning = self._cycle(x, answer, reasoning, inputs, slots)
            rounds.append(answer)
            answer, reasoning = answer.detach(), reasoning.detach()
        return tuple(rounds)

    def _cycle(
        self, x: Tensor, answer: Tensor, reasoning: Tensor, inputs: AttentionInputs, slots: Iterator[int]
    ) -> tuple[Tensor, Tensor]:
        given = x + answer
        for _ in range(self.config.num_steps):
            reasoning = self._refine(given + reasoning, inputs, slots)
        return self._refine(answer + reasoning, inputs, slots), reasoning

    def _refine(self, x: Tensor, inputs: AttentionInputs, slots: Iterator[int]) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled() and inputs.cache is None:
            return checkpoint(self.network, x, inputs, next(slots), use_reentrant=False)
        return self.network(x, inputs, next(slots))


class RecursionHead(nn.Module):
    """Latent recursion on the last hidden states h of a language model: h + g * RMSNorm(H), with X = H0 = h.

    g is one number that starts at 0, and nothing else does: at first the output is h to the bit, and the gradient
    reaches g, and then the network. Its heads are 64 wide where that divides D.

    Args:
        config: the recursion's settings.
        dim: D, width of the language model, an even number.
        mlp_ratio: hidden width of the MLPs as a multiple of D.
        activation_checkpointing: recompute each pass of the network in the backward pass.

    Raises:
        ConfigError: `dim` is odd.
    """

    def __init__(
        self, config: RecursionConfig, *, dim: int, mlp_ratio: float = 4.0, activation_checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.recursion = LatentRecursion(
            config,
            dim=dim,
            num_heads=_heads_of(dim),
            mlp_ratio=mlp_ratio,
            activation_checkpointing=activation_checkpointing,
        )
        self.norm = nn.RMSNorm(dim)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, hidden: Tensor, context: CausalContext) -> tuple[Tensor, ...]:
        """(B, S, D) of any floating type -> the same after each round; `context.first_slot` is the number of layers
        of the language model."""
        h = hidden.to(self.norm.weight.dtype)
        rounds = self.recursion(h, h, context)
        return tuple(self.refined(hidden, answer) for answer in rounds)

    def refined(self, hidden: Tensor, answer: Tensor) -> Tensor:
        """Hidden states h and the recursion's H, (B, S, D) each, to the output."""
        return hidden + (self.gate * self.norm(answer)).to(hidden.dtype)


@contextmanager
def recording_cycles(decoder: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the hidden states (B, S, H) that the LM head would read after each cycle of a decoder's recursion.

    Behind a language model the first are its own, before the recursion. The list stays empty where nothing is recursed.
    """
    states: list[Tensor] = []
    head = next((module for module in decoder.modules() if isinstance(module, RecursionHead)), None)
    found = next((module for module in decoder.modules() if isinstance(module, LatentRecursion)), None)
    if found is None or not (found.config.recursive or head):
        yield states
        return
    passes = 0
    per_cycle = found.config.num_steps + 1 if found.config.recursive else 1

    def start(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        states.append(inputs[0])

    def end_of_pass(_: nn.Module, __: tuple[Any, ...], answer: Tensor) -> None:
        nonlocal passes
        passes += 1
        if passes % per_cycle == 0:  # the last pass of a cycle updates H, those before it Z
            states.append(answer if head is None else head.refined(states[0], answer))

    with ExitStack() as hooks:
        if head is not None:
            hooks.enter_context(head.register_forward_pre_hook(start))
        hooks.enter_context(found.network.register_forward_hook(end_of_pass))
        yield states


def _check_room(context: CausalContext) -> None:
    if context.cache is None or isinstance(context.cache, SharedPast):
        return
    if getattr(context.cache, "layer_class_to_replicate", None) is None:
        fault = f"{type(context.cache).__name__} was made for a fixed number of layers, and the recursion needs more"
        raise ConfigError(f"past_key_values: {fault}; pass an empty DynamicCache()")


def _heads_of(dim: int) -> int:
    if dim % 2:
        fault = f"the model's width {dim} is odd, which rotary positions cannot use"
        raise ConfigError(f"decoder.use_trm_recursion: {fault}")
    return fitting_heads(dim // 2, max(1, dim // _HEAD_DIM))  # each of them has an even width
