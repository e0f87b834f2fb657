"""Text, token by token behind a cache; and a decoder as a model of transformers, whose beam search serves it.

Imported only where text is generated, for it needs transformers from the start. What changes the choice of a token
(penalties, temperature, top-k, top-p) is transformers' own, in both ways.

Letters of shapes: B batch, S new positions, C positions in the cache and the new ones, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    Cache,
    DynamicCache,
    GenerationMixin,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from impresa.config.decoder import GenerationConfig
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


@torch.inference_mode()
def write_tokens(
    decoder: Any,
    embeds: Tensor,
    mask: Tensor,
    settings: GenerationConfig,
    *,
    end_ids: Sequence[int],
    pad_id: int,
    rows: Sequence[int],
) -> Iterator[Tensor]:
    """Continue texts, without beams; nothing is computed between two tokens but when the next is asked for.

    Args:
        decoder: a `Decoder`.
        embeds: (B, S, H), prefixes and texts.
        mask: (B, S) bool, true where they are real, as the last of each is.
        settings: see `Decoder.generate`, as for the rest.
        end_ids: tokens that end a text.
        pad_id: what follows them.
        rows: numbers of the texts.

    Yields:
        (B,) int64: the next token of each text.
    """
    cache, process = DynamicCache(), cast("Callable[[Tensor, Tensor], Tensor]", _processors(settings))
    generators = None if settings.seed is None else [_generator(settings.seed, row, mask.device) for row in rows]
    ends = torch.tensor(end_ids, dtype=torch.long, device=mask.device)
    ids = ends.new_empty(len(mask), 0)
    ended = torch.zeros_like(mask[:, 0])
    for _ in range(settings.max_new_tokens):
        hidden = decoder.run(embeds, CausalContext.of(mask, embeds.shape[1], cache))[-1]
        scores = process(ids, decoder.head(hidden[:, -1]).float())
        token = _draw(scores, generators) if settings.temperature > 0 else scores.argmax(dim=-1)
        token = token.masked_fill(ended, pad_id)
        yield token
        ended = ended | torch.isin(token, ends)
        if ended.all():
            return
        ids = torch.cat((ids, token[:, None]), dim=1)
        embeds, mask = decoder.embed(token[:, None]), F.pad(mask, (0, 1), value=True)


def search_beams(
    decoder: Any,
    embeds: Tensor,
    mask: Tensor,
    settings: GenerationConfig,
    *,
    end_ids: Sequence[int],
    pad_id: int,
    first_row: int,
    is_stop: Callable[[Sequence[int]], bool] | None,
) -> Tensor:
    """Continue texts by transformers' beam search. Arguments as in `write_tokens`; returns (B, new) int64."""
    is_drawn = settings.temperature > 0
    drawn = {"temperature": 1.0, "top_p": 1.0, "top_k": 0} if is_drawn else {}  # neutral: the processors have them
    plain = transformers.GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.num_beams,
        do_sample=is_drawn,
        eos_token_id=list(end_ids) or None,
        pad_token_id=pad_id,
        use_cache=True,
        **drawn,
    )
    is_seeded = is_drawn and settings.seed is not None
    with torch.random.fork_rng(devices=[mask.device] if mask.is_cuda else [], enabled=is_seeded):
        if is_seeded:
            torch.manual_seed(_mixed(settings.seed or 0, first_row))
        return decoder.causal_lm.generate(
            inputs_embeds=embeds,
            attention_mask=mask.long(),
            position_ids=CausalContext.of(mask).position_ids,
            past_key_values=DynamicCache(),
            generation_config=plain,
            logits_processor=_processors(settings),
            stopping_criteria=None if is_stop is None else [_Stopping(is_stop)],
        )


class _Stopping(StoppingCriteria):
    """A test of new tokens as transformers calls it."""

    def __init__(self, is_stop: Callable[[Sequence[int]], bool]) -> None:
        self._is_stop = is_stop

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.tensor([self._is_stop(ids) for ids in input_ids.tolist()], device=input_ids.device)


def _processors(settings: GenerationConfig) -> LogitsProcessorList:
    """The changes that `settings` make to the scores (B, V) of the next token, given the tokens (B, new) before it."""
    found = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(float(settings.repetition_penalty)))
    if settings.no_repeat_ngram_size:
        found.append(NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size))
    if settings.temperature > 0:
        found.append(TemperatureLogitsWarper(float(settings.temperature)))
        if settings.top_k:
            found.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            found.append(TopPLogitsWarper(float(settings.top_p)))
    return found


def _draw(scores: Tensor, generators: Sequence[torch.Generator] | None) -> Tensor:
    probabilities = scores.softmax(dim=-1)
    if generators is None:
        return torch.multinomial(probabilities, 1).squeeze(1)
    pairs = zip(probabilities, generators, strict=True)
    return torch.cat([torch.multinomial(row, 1, generator=generator) for row, generator in pairs])


def _generator(seed: int, row: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(_mixed(seed, row))


def _mixed(*numbers: int) -> int:
    """One seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
