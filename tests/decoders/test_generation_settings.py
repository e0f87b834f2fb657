"""What settings of generation do to the text, in both decoders, held against transformers' own generation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from impresa.config.decoder import DecoderConfig, GenerationConfig, RecursionConfig
from impresa.decoders.base import Decoder
from impresa.decoders.context import CausalContext
from impresa.decoders.pretrained import PretrainedDecoder
from impresa.decoders.trm import TRMDecoder
from tiny_qwen import save_qwen

PAD, NEW = 0, 20
CHANGES: dict[str, dict[str, Any]] = {
    "penalty": {"repetition_penalty": 1.7},
    "pairs": {"no_repeat_ngram_size": 2},
    "single tokens": {"no_repeat_ngram_size": 1},
    "both": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    "penalty of beams": {"repetition_penalty": 1.7, "num_beams": 3},
    "pairs of beams": {"no_repeat_ngram_size": 2, "num_beams": 3},
    "sampled": {"temperature": 1.5},
    "sampled from few": {"temperature": 1.5, "top_k": 3},
    "sampled from a share": {"temperature": 1.5, "top_p": 0.5},
    "sampled from both": {"temperature": 3.0, "top_k": 6, "top_p": 0.6, "repetition_penalty": 1.2},
    "sampled beams": {"temperature": 1.5, "top_k": 3, "num_beams": 2},
}


@pytest.fixture(scope="module", params=["qwen", "trm"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    torch.manual_seed(0)
    if request.param == "qwen":
        folder: Path = save_qwen(tmp_path_factory.mktemp("qwen"), scale=0.1)
        return PretrainedDecoder(DecoderConfig(model=str(folder), freeze=True)).eval()
    recursion = RecursionConfig(num_cycles=1, num_steps=1, num_layers=1)
    config = DecoderConfig(type="trm", dim=32, num_heads=4, mlp_ratio=2.0, recursion=recursion)
    return TRMDecoder(config, 60).eval()


def prompts(decoder: Decoder) -> dict[str, torch.Tensor]:
    """Three texts, the second of them shorter."""
    draw = torch.Generator().manual_seed(1)
    mask = torch.ones(3, 5, dtype=torch.long)
    mask[1, :2] = 0
    return {
        "input_ids": torch.randint(6, 60, (3, 5), generator=draw),
        "attention_mask": mask,
        "prefix_embeds": torch.randn(3, 4, decoder.hidden_size, generator=draw),
    }


def write(decoder: Decoder, given: dict[str, torch.Tensor], rows: Sequence[int] | None = None, **settings: Any) -> Any:
    chosen = GenerationConfig(**{"max_new_tokens": NEW, **settings})
    return decoder.generate(**given, settings=chosen, end_ids=(), pad_id=PAD, rows=rows)


def by_transformers(decoder: Decoder, given: dict[str, torch.Tensor], settings: dict[str, Any]) -> torch.Tensor:
    """The same by transformers' `generate`, with its own switches."""
    mask = torch.cat((torch.ones(3, 4), given["attention_mask"]), dim=1).bool()
    temperature = settings.get("temperature", 0)
    drawn = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    return decoder.causal_lm.generate(
        inputs_embeds=torch.cat((given["prefix_embeds"], decoder.embed(given["input_ids"])), dim=1),
        attention_mask=mask.long(),
        position_ids=CausalContext.of(mask).position_ids,
        past_key_values=transformers.DynamicCache(),
        max_new_tokens=NEW,
        do_sample=bool(temperature),
        pad_token_id=PAD,
        **drawn | settings,
    )


@pytest.mark.parametrize("settings", CHANGES.values(), ids=CHANGES)
def test_a_setting_acts_as_that_of_transformers(decoder: Decoder, settings: dict[str, Any]) -> None:
    given = prompts(decoder)
    torch.manual_seed(5)
    new = write(decoder, given, **settings)
    torch.manual_seed(5)
    assert torch.equal(new, by_transformers(decoder, given, settings))
    last = list(settings)[-1] if "num_beams" not in settings else next(iter(settings))
    torch.manual_seed(5)
    assert not torch.equal(new, write(decoder, given, **{k: v for k, v in settings.items() if k != last}))


def test_what_does_not_repeat(decoder: Decoder) -> None:
    given = prompts(decoder)
    assert any(len(set(text)) < NEW for text in write(decoder, given).tolist())
    for text in write(decoder, given, no_repeat_ngram_size=1).tolist():
        assert len(set(text)) == NEW
    for text in write(decoder, given, no_repeat_ngram_size=2).tolist():
        assert len(set(pairwise(text))) == NEW - 1


def test_the_question_does_not_count_as_a_repetition(decoder: Decoder) -> None:
    given = prompts(decoder)
    first = write(decoder, given, max_new_tokens=1)
    said = given | {
        "input_ids": torch.cat((first, given["input_ids"]), dim=1),
        "attention_mask": torch.ones(3, 6, dtype=torch.long),
    }
    expected = write(decoder, said, max_new_tokens=1)
    assert torch.equal(write(decoder, said, max_new_tokens=1, repetition_penalty=100.0), expected)


def test_a_seed_repeats_what_is_drawn_in_any_batch(decoder: Decoder) -> None:
    given, hot = prompts(decoder), {"temperature": 2.0, "seed": 7}
    before = torch.random.get_rng_state()
    together = write(decoder, given, **hot)
    assert torch.equal(write(decoder, given, **hot), together)
    assert not torch.equal(write(decoder, given, **hot | {"seed": 8}), together)
    for row in range(3):
        alone = {name: value[row : row + 1] for name, value in given.items()}
        assert torch.equal(write(decoder, alone, [row], **hot)[0], together[row])
    again = {name: value[:1].expand(3, *value.shape[1:]) for name, value in given.items()}
    assert len({tuple(text) for text in write(decoder, again, **hot).tolist()}) == 3  # each row draws its own
    beams = write(decoder, given, **hot, num_beams=2)
    assert torch.equal(write(decoder, given, **hot, num_beams=2), beams)
    assert not torch.equal(write(decoder, given, **hot | {"seed": 8}, num_beams=2), beams)
    assert torch.equal(torch.random.get_rng_state(), before)  # the global generator is not touched


def test_a_text_that_ends_the_answer_ends_the_work(decoder: Decoder) -> None:
    given, lengths = prompts(decoder), [4, 7, 2]
    free = write(decoder, given).tolist()

    def is_stop(ids: Sequence[int]) -> bool:
        return any(list(ids[:length]) == text[:length] for text, length in zip(free, lengths, strict=True))

    settings = GenerationConfig(max_new_tokens=NEW)
    new = decoder.generate(**given, settings=settings, end_ids=(), pad_id=PAD, is_stop=is_stop)
    assert new.tolist() == [text[:7] for text in free]


def test_it_ends_beams_as_well(decoder: Decoder) -> None:
    settings = GenerationConfig(max_new_tokens=NEW, num_beams=3)
    ends: dict[str, Any] = {"settings": settings, "end_ids": (), "pad_id": PAD, "is_stop": lambda ids: len(ids) >= 5}
    assert decoder.generate(**prompts(decoder), **ends).shape == (3, 5)
