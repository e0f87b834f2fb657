"""Text from the TRM decoder: the cache changes nothing but the time, under beams and padding too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from impresa.config.decoder import DecoderConfig, GenerationConfig, RecursionConfig
from impresa.decoders.generation import CausalLM
from impresa.decoders.trm import TRMDecoder
from impresa.errors import ConfigError, DataError

VOCABULARY, WIDTH, PREFIX = 37, 32, 4
RECURSION = RecursionConfig(num_cycles=2, num_steps=2, num_rounds=2, num_layers=2, dropout=0.2)
DEPTHS = {
    "deep": RECURSION,
    "one pass of each": RecursionConfig(num_cycles=1, num_steps=1, num_rounds=1, num_layers=1, dropout=0.0),
    "plain": replace(RECURSION, recursive=False),
}
END, PAD = 5, 0


@pytest.fixture(params=DEPTHS)
def decoder(request: pytest.FixtureRequest) -> TRMDecoder:
    return _decoder(DEPTHS[request.param])


def _decoder(recursion: RecursionConfig = RECURSION) -> TRMDecoder:
    torch.manual_seed(0)
    config = DecoderConfig(type="trm", dim=WIDTH, num_heads=4, mlp_ratio=2.0, recursion=recursion)
    decoder = TRMDecoder(config, VOCABULARY).eval()
    # An untrained decoder repeats its token for ever; larger weights make its texts as varied as a trained one's.
    decoder.gain.data.normal_(generator=torch.Generator().manual_seed(3))
    for weight in decoder.recursion.network.parameters():
        weight.data *= 2
    return decoder


def _prompts() -> dict[str, torch.Tensor]:
    """Three prompts of 6, 3 and 6 tokens, padded on the left, and a prefix of which one token is masked."""
    draw = torch.Generator().manual_seed(1)
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, :3] = 0
    prefix_mask = torch.ones(3, PREFIX, dtype=torch.bool)
    prefix_mask[2, 1] = False
    return {
        "input_ids": torch.randint(6, VOCABULARY, (3, 6), generator=draw),
        "attention_mask": mask,
        "prefix_embeds": torch.randn(3, PREFIX, WIDTH, generator=draw),
        "prefix_mask": prefix_mask,
    }


def _generate(decoder: TRMDecoder, prompts: dict[str, torch.Tensor], **settings: Any) -> torch.Tensor:
    chosen = GenerationConfig(**{"max_new_tokens": 14, **settings})
    return decoder.generate(**prompts, settings=chosen, end_ids=[END], pad_id=PAD)


def _greedy_without_cache(decoder: TRMDecoder, prompts: dict[str, torch.Tensor], length: int = 14) -> torch.Tensor:
    ids, mask = prompts["input_ids"], prompts["attention_mask"]
    ended = torch.zeros(len(ids), dtype=torch.bool)
    with torch.inference_mode():
        for _ in range(length):
            logits = decoder(ids, mask, prompts["prefix_embeds"], prefix_mask=prompts["prefix_mask"]).logits
            token = logits[:, -1].argmax(-1).masked_fill(ended, PAD)
            ended |= token == END
            ids = torch.cat([ids, token[:, None]], dim=1)
            mask = torch.cat([mask, torch.ones_like(token)[:, None]], dim=1)
            if ended.all():
                break
    return ids[:, prompts["input_ids"].shape[1] :]


def test_greedy_text_is_that_without_a_cache(decoder: TRMDecoder) -> None:
    text = _generate(decoder, _prompts())
    assert torch.equal(text, _greedy_without_cache(decoder, _prompts()))
    assert text.unique().numel() > 5


def test_logits_are_those_without_a_cache(decoder: TRMDecoder) -> None:
    prompts, model = _prompts(), decoder.causal_lm
    with torch.inference_mode():
        whole = decoder(**prompts).logits
        embeds = torch.cat([prompts["prefix_embeds"], decoder.embed(prompts["input_ids"])], dim=1)
        mask = torch.cat([prompts["prefix_mask"].long(), prompts["attention_mask"]], dim=1)
        cache = DynamicCache()
        first = model(inputs_embeds=embeds[:, :-2], attention_mask=mask[:, :-2], past_key_values=cache).logits
        last = [
            model(input_ids=prompts["input_ids"][:, [t]], attention_mask=mask[:, :end], past_key_values=cache).logits
            for t, end in ((4, PREFIX + 5), (5, PREFIX + 6))
        ]
    torch.testing.assert_close(torch.cat([first, *last], dim=1)[mask.bool()], whole[mask.bool()], rtol=1e-4, atol=1e-5)
    assert len(cache) == decoder.recursion.num_slots


class Uncached(CausalLM):
    """Reads prefix and text anew for each token."""

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, *, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any
    ) -> dict[str, Any]:
        embeds = torch.cat([inputs_embeds, self.wrapped.embed(input_ids)], dim=1)
        return {"inputs_embeds": embeds, "attention_mask": attention_mask, "logits_to_keep": 1}


def test_beams_are_those_without_a_cache(decoder: TRMDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    with_cache = _generate(decoder, _prompts(), num_beams=3)
    assert not torch.equal(with_cache, _generate(decoder, _prompts()))
    monkeypatch.setattr(TRMDecoder, "causal_lm", property(Uncached))
    assert torch.equal(with_cache, _generate(decoder, _prompts(), num_beams=3))


def test_beam_search_reorders_every_slot(decoder: TRMDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    filled: set[int] = set()
    reorder = DynamicCache.reorder_cache

    def spy(cache: DynamicCache, beams: torch.Tensor) -> None:
        filled.add(sum(layer.get_seq_length() > 0 for layer in cache.layers))
        reorder(cache, beams)

    monkeypatch.setattr(DynamicCache, "reorder_cache", spy)
    _generate(decoder, _prompts(), num_beams=2)
    assert filled == {decoder.recursion.num_slots}


def test_prompts_together_are_prompts_one_by_one(decoder: TRMDecoder) -> None:
    prompts = _prompts()
    together = _generate(decoder, prompts)
    for row in range(3):
        real = prompts["attention_mask"][row].bool()
        alone = {name: tensor[row : row + 1] for name, tensor in prompts.items()}
        alone["input_ids"], alone["attention_mask"] = alone["input_ids"][:, real], alone["attention_mask"][:, real]
        text = _generate(decoder, alone)[0]
        assert torch.equal(together[row, : len(text)], text)
        assert (together[row, len(text) :] == PAD).all()


def test_each_new_token_is_one_position_of_work() -> None:
    decoder, lengths = _decoder(), []
    decoder.recursion.network.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    decoder.generate(**_prompts(), settings=GenerationConfig(max_new_tokens=5), end_ids=[], pad_id=PAD)
    passes = 2 * 2 * (2 + 1)
    assert lengths == [PREFIX + 6] * passes + [1] * (4 * passes)


def test_it_stops_at_the_end_token_and_pads() -> None:
    decoder, prompts = _decoder(), _prompts()
    text = _generate(decoder, prompts, max_new_tokens=10)
    end = int(text[0, 3])
    stopped = decoder.generate(**prompts, settings=GenerationConfig(max_new_tokens=10), end_ids=[end], pad_id=PAD)
    first = text[0].tolist().index(end)
    assert stopped[0, : first + 1].tolist() == text[0, : first + 1].tolist()
    assert (stopped[0, first + 1 :] == PAD).all()


def test_sampling_follows_the_seed_and_differs_between_seeds() -> None:
    decoder, texts = _decoder(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(_generate(decoder, _prompts(), temperature=1.5))
    assert torch.equal(texts[0], texts[1])
    assert texts[0].shape != texts[2].shape or not torch.equal(texts[0], texts[2])


def test_the_model_of_transformers_shares_the_weights_and_is_no_child() -> None:
    decoder = _decoder()
    before = list(decoder.state_dict())
    model = decoder.causal_lm
    assert list(decoder.state_dict()) == before
    assert {id(p) for p in model.parameters()} == {id(p) for p in decoder.parameters()}
    assert not model.training


def test_the_model_of_transformers_fills_in_mask_and_positions() -> None:
    decoder, prompts = _decoder(), _prompts()
    model, embeds = decoder.causal_lm, prompts["prefix_embeds"]
    cache = DynamicCache()
    with torch.inference_mode():
        model(inputs_embeds=embeds, past_key_values=cache)
        given = model(input_ids=prompts["input_ids"][:, :1], past_key_values=cache, logits_to_keep=1).logits
        whole = decoder(prompts["input_ids"][:, :1], torch.ones(3, 1), embeds).logits
        untouched = DynamicCache()
        assert model(inputs_embeds=embeds, past_key_values=untouched, use_cache=False).past_key_values is None
    assert given.shape == (3, 1, VOCABULARY)
    assert len(untouched) == 0
    torch.testing.assert_close(given, whole[:, -1:], rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="neither token ids nor embeddings"):
        model()


def test_a_cache_that_cannot_grow_is_refused() -> None:
    model = _decoder().causal_lm
    model.config.num_hidden_layers = 1
    model.config.hidden_size = WIDTH
    cache = StaticCache(config=model.config, max_cache_len=8)
    with pytest.raises(ConfigError, match="past_key_values: StaticCache was made for a fixed number of layers"):
        model(inputs_embeds=_prompts()["prefix_embeds"], past_key_values=cache)
