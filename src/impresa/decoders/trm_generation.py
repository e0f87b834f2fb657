"""The TRM decoder as a model of transformers, so that its `generate` serves it: sampling, beams, streaming, cache.

Letters of shapes: B batch, S new positions, C positions in the cache and the new ones, H width, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import Cache, GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from impresa.decoders.base import positions_of
from impresa.decoders.causal_network import CausalContext
from impresa.errors import DataError

if TYPE_CHECKING:
    from impresa.decoders.trm import TRMDecoder


class TRMForCausalLM(PreTrainedModel, GenerationMixin):
    """A shell around a decoder, whose weights it shares; it has none of its own.

    The cache must be an empty `DynamicCache()`: it grows as the recursion fills a slot for each layer of each pass, and
    beam search reorders all of them.
    """

    config_class = PretrainedConfig
    _supports_sdpa = True

    def __init__(self, decoder: TRMDecoder) -> None:
        super().__init__(PretrainedConfig.from_dict({"vocab_size": decoder.embedding.num_embeddings}))
        self.trm = decoder
        self.generation_config = GenerationConfig()
        self.train(decoder.training)

    def get_input_embeddings(self) -> nn.Module:
        return self.trm.embedding

    def forward(
        self,
        *,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = True,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast:
        """Read S new positions.

        Args:
            input_ids: (B, S) int64, or None when `inputs_embeds` are given.
            inputs_embeds: (B, S, H), prefix and text.
            attention_mask: (B, C), 1 where a position is real. None: everywhere.
            position_ids: (B, S). None: real positions are counted.
            past_key_values: the cache of the positions before, which grows by S. None: there are none.
            use_cache: false leaves the cache alone.
            logits_to_keep: how many of the last positions get logits; 0 is all.
            return_dict: there is no other form.

        Returns:
            `logits` (B, S or `logits_to_keep`, V) and the cache.
        """
        if input_ids is not None:
            inputs_embeds = self.trm.embed(input_ids)
        if inputs_embeds is None:
            raise DataError("input_ids: neither token ids nor embeddings are given; pass one of them")
        cache = past_key_values if use_cache else None
        if attention_mask is None:
            num_past = 0 if cache is None else cache.get_seq_length()
            attention_mask = inputs_embeds.new_ones(len(inputs_embeds), num_past + inputs_embeds.shape[1])
        mask = attention_mask.bool()
        if position_ids is None:
            position_ids = positions_of(mask)[:, -inputs_embeds.shape[1] :]
        hidden = self.trm.recursion(inputs_embeds, None, CausalContext(mask, position_ids, cache))[-1]
        return CausalLMOutputWithPast(logits=self.trm.head(hidden[:, -logits_to_keep:]), past_key_values=cache)
