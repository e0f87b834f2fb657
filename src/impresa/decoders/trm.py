"""A Tiny Recursive Model as decoder: a language model from scratch that thinks by latent recursion instead of depth.

Source: "Less is More: Recursive Reasoning with Tiny Networks" (Jolicoeur-Martineau 2025, arXiv:2510.04871). There TRM
stands for Tiny Recursive Model; the name Transformer-based Recurrent Memory, which is in use too, means this as well. A
causal TRM for text is our own design: the paper's solves puzzles of a fixed length and sees all of them at once.

Letters of shapes: B batch, T text, S prefix and text, H width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from impresa.config.experiment import DecoderConfig
from impresa.decoders.base import Decoder, positions_of
from impresa.decoders.causal_network import CausalContext, SharedPast
from impresa.decoders.recursion import LatentRecursion
from impresa.errors import ConfigError


class TRMDecoder(Decoder):
    """Token embeddings, latent recursion, and an LM head that is tied to the embeddings.

    Prefix and token embeddings are each brought to a root mean square of one before the recursion, so that neither
    drowns the other. The tied head saves V x H parameters, most of a small model's; a gain of width H before it takes
    the place of a norm's (the recursion's output is normalised already).

    With `config.recursion.recursive` false it is a plain decoder of the same parameters, the control.

    Args:
        config: the decoder's settings.
        vocab_size: V, tokens of the run's tokenizer.

    Raises:
        ConfigError: the tokenizer is larger than `config.vocab_size`, or `config.num_heads` does not fit `config.dim`.
    """

    def __init__(self, config: DecoderConfig, vocab_size: int) -> None:
        super().__init__()
        if vocab_size > config.vocab_size:
            fault = f"the tokenizer has {vocab_size} tokens, more than {config.vocab_size}"
            raise ConfigError(f"decoder.vocab_size: {fault}; raise it")
        self.hidden_size = config.dim
        self.embedding = nn.Embedding(vocab_size, config.dim)
        nn.init.normal_(self.embedding.weight, std=config.dim**-0.5)
        self.recursion = LatentRecursion(
            config.recursion,
            dim=config.dim,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            activation_checkpointing=config.activation_checkpointing,
        )
        self.gain = nn.Parameter(torch.ones(config.dim))

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token ids (B, T) -> embeddings (B, T, H)."""
        return self.embedding(input_ids)

    def run(self, embeds: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Embeddings (B, S, H) -> the answer state H (B, S, H) after each round of deep supervision."""
        return self.recursion(embeds, None, CausalContext(mask, position_ids))

    def run_shared(
        self,
        prefix_embeds: torch.Tensor,
        prefix_mask: torch.Tensor,
        text: torch.Tensor,
        mask: torch.Tensor,
        prefix_of_row: torch.Tensor,
    ) -> tuple[torch.Tensor, ...] | None:
        """See `Decoder.run_shared`: causality lets all texts of a prefix read the same states of it."""
        if self.recursion.activation_checkpointing:  # it keeps no keys and values
            return None
        past, P = SharedPast(), prefix_embeds.shape[1]
        before = self.recursion(prefix_embeds, None, CausalContext(prefix_mask, positions_of(prefix_mask), past))
        past.share(prefix_of_row)
        behind = self.recursion(text, None, CausalContext(mask, positions_of(mask)[:, P:], past))
        return tuple(torch.cat((a[prefix_of_row], b), dim=1) for a, b in zip(before, behind, strict=True))

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (..., H) -> logits (..., V)."""
        return F.linear(hidden * self.gain, self.embedding.weight)

    @property
    def causal_lm(self) -> Any:
        """The decoder as a model of transformers, made anew at each call around the same weights."""
        from impresa.decoders.trm_generation import TRMForCausalLM

        return TRMForCausalLM(self)
