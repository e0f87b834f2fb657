"""A decoder as a model of transformers, so that its `generate` serves it: sampling, beams, streaming, cache.

Imported only where text is generated, for it needs transformers from the start.

Letters of shapes: B batch, S new positions, C positions in the cache and the new ones, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import transformers
from torch import Tensor
from transformers import Cache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from impresa.config.experiment import GenerationConfig
from impresa.decoders.context import CausalContext
from impresa.errors import DataError


class CausalLM(PreTrainedModel, GenerationMixin):
    """A shell around a `Decoder`, whose weights it shares; it has none of its own.

    The cache must be an empty `DynamicCache()`: it grows as recursion fills a slot for each layer of each pass, and
    beam search reorders all of them.
    """

    def __init__(self, decoder: Any) -> None:
        super().__init__(PreTrainedConfig())
        self.wrapped = decoder
        self.training = decoder.training
        # Empty, for transformers takes from here what a caller leaves open.
        self.generation_config = transformers.GenerationConfig()

    def forward(  # noqa: PLR0917 - as transformers calls its own models
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool = True,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast:
        """Read S new positions: `input_ids` (B, S), or `inputs_embeds` (B, S, H) of prefix and text.

        `attention_mask` (B, C) is 1 where a position is real, None for everywhere; without `position_ids` (B, S) the
        real positions are counted. `past_key_values`, the cache of earlier positions, grows by S unless `use_cache` is
        false. The last `logits_to_keep` positions get logits, all if it is 0. `return_dict` is ignored.

        Raises:
            DataError: neither token ids nor embeddings are given.
        """
        if input_ids is not None:
            inputs_embeds = self.wrapped.embed(input_ids)
        if inputs_embeds is None:
            raise DataError("input_ids: neither token ids nor embeddings are given; pass one of them")
        cache = past_key_values if use_cache else None
        if attention_mask is None:
            num_past = 0 if cache is None else cache.get_seq_length()
            attention_mask = inputs_embeds.new_ones(len(inputs_embeds), num_past + inputs_embeds.shape[1])
        mask = attention_mask.bool()
        context = CausalContext.of(mask, inputs_embeds.shape[1], cache)
        if position_ids is not None:
            context = replace(context, position_ids=position_ids)
        hidden = self.wrapped.run(inputs_embeds, context)[-1]
        return CausalLMOutputWithPast(logits=self.wrapped.head(hidden[:, -logits_to_keep:]), past_key_values=cache)


def settings_of(config: GenerationConfig, end_ids: Sequence[int], pad_id: int) -> transformers.GenerationConfig:
    """transformers' settings, all that change a choice of token being given."""
    sampling = config.temperature > 0
    drawn = {"temperature": config.temperature, "top_p": config.top_p, "top_k": 0} if sampling else {}
    return transformers.GenerationConfig(
        max_new_tokens=config.max_new_tokens,
        num_beams=config.num_beams,
        do_sample=sampling,
        eos_token_id=list(end_ids) or None,
        pad_token_id=pad_id,
        use_cache=True,
        **drawn,
    )
