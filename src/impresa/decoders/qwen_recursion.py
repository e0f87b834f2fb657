"""A Qwen model with latent recursion before its LM head, as transformers' `generate` knows models.

Imported only where text is generated, for it needs transformers from the start. S are the new positions of a call.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from impresa.decoders.recursion import CausalContext, RecursionHead


class RecursiveCausalLM(PreTrainedModel, GenerationMixin):
    """The blocks of a language model, the recursion on their last hidden states, and the LM head.

    The recursion keeps its keys and values in the cache's slots after those of the blocks, so that reordering of beams
    covers them. It has no weights of its own and is made for one generation.

    Args:
        model: transformers' causal language model.
        recursion: what stands between its blocks and its LM head.
    """

    def __init__(self, model: Any, recursion: RecursionHead) -> None:
        # A config of its own, because the base class writes into it.
        super().__init__(PreTrainedConfig.from_dict({"vocab_size": model.config.vocab_size}))
        self.generation_config = GenerationConfig()
        self.model = model
        self.recursion = recursion

    def get_input_embeddings(self) -> Any:
        return self.model.get_input_embeddings()

    def forward(  # noqa: PLR0917 - as transformers calls its own models
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast:
        """Logits (B, S or `logits_to_keep`, V) of the new tokens, after those in the cache.

        `return_dict` is there because transformers passes it; it always asks for what is returned anyway.

        Raises:
            ConfigError: a cache that has no room for the recursion: any but an empty `DynamicCache()` at the start.
        """
        num_past = 0 if past_key_values is None else past_key_values.get_seq_length()
        hidden = self.model.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
        ).last_hidden_state
        B, S = hidden.shape[:2]
        if attention_mask is None:  # transformers leaves it out where all is real
            attention_mask = torch.ones(B, num_past + S, dtype=torch.bool, device=hidden.device)
        if position_ids is None:
            position_ids = torch.arange(num_past, num_past + S, device=hidden.device)[None]
        context = CausalContext(
            attention_mask.bool(), position_ids, past_key_values, first_slot=self.model.config.num_hidden_layers
        )
        hidden = self.recursion(hidden, context)[-1]
        return CausalLMOutputWithPast(
            logits=self.model.lm_head(hidden[:, -logits_to_keep:]), past_key_values=past_key_values
        )
