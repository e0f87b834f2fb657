"""A Tiny Recursive Model as decoder: a language model from scratch, with latent recursion in place of depth.

TRM is the paper's name (see `impresa.decoders.recursion`); the name Transformer-based Recurrent Memory, which is in use
too, means this as well. A causal TRM for text is our own design.

Letters of shapes: B batch, T text, S prefix and text, H width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from impresa.config.decoder import DecoderConfig
from impresa.decoders.base import Decoder
from impresa.decoders.context import CausalContext
from impresa.decoders.recursion import LatentRecursion
from impresa.errors import ConfigError


class TRMDecoder(Decoder):
    """Token embeddings, latent recursion, and an LM head that is tied to the embeddings.

    Prefix and token embeddings are each brought to a root mean square of one before the recursion, so that neither
    dominates. The tied head saves V x H parameters, most of a small model's; a gain of width H before it takes the
    place of a norm's (the recursion's output is normalised already).

    With `config.recursion.recursive` false it is a plain decoder of the same parameters, the control.

    Args:
        config: `decoder` of the experiment.
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
        self.can_share_prefixes = not config.activation_checkpointing  # which keeps no keys and values

    def embed(self, input_ids: Tensor) -> Tensor:
        return self.embedding(input_ids)

    def run(self, embeds: Tensor, context: CausalContext) -> tuple[Tensor, ...]:
        return self.recursion(embeds, None, context)

    def head(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden * self.gain, self.embedding.weight)
