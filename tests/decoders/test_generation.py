"""Text from a Qwen decoder: batches, beams, sampling, streaming and ends; and latent recursion with its cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from impresa.config.decoder import DecoderConfig, GenerationConfig, RecursionConfig
from impresa.decoders.pretrained import PretrainedDecoder
from impresa.errors import ConfigError
from tiny_qwen import HIDDEN, VOCAB, save_qwen

PAD = 256
NEW = 8
Prompts = list[dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen(tmp_path_factory.mktemp("qwen"), "qwen3", scale=0.3)


@pytest.fixture(scope="module", params=["plain", "recursive"])
def decoder(request: pytest.FixtureRequest, folder: Path) -> PretrainedDecoder:
    torch.manual_seed(2)
    recursion = RecursionConfig(num_cycles=2, num_steps=1, num_rounds=2, num_layers=1)
    recursive = request.param == "recursive"
    config = DecoderConfig(model=str(folder), freeze=True, use_trm_recursion=recursive, recursion=recursion)
    decoder = PretrainedDecoder(config).eval()
    if recursive:
        nn.init.constant_(decoder.recursion.gate, 1.0)
    return decoder


def prompts() -> Prompts:
    """Three of unequal length, behind prefixes of which the second is shorter."""
    generator = torch.Generator().manual_seed(4)
    found = []
    for length, num_prefix in ((7, 4), (3, 2), (5, 4)):
        found.append({
            "input_ids": torch.randint(256, (1, length), generator=generator),
            "attention_mask": torch.ones(1, length, dtype=torch.long),
            "prefix_embeds": torch.randn(1, num_prefix, HIDDEN, generator=generator),
        })  # fmt: skip
    return found


def batched(prompts: Prompts) -> dict[str, torch.Tensor]:
    """Texts padded on the left, prefixes on the right with tokens that are masked."""
    text, prefix = max(p["input_ids"].shape[1] for p in prompts), max(p["prefix_embeds"].shape[1] for p in prompts)
    rows = []
    for prompt in prompts:
        left, right = text - prompt["input_ids"].shape[1], prefix - prompt["prefix_embeds"].shape[1]
        rows.append({
            "input_ids": nn.functional.pad(prompt["input_ids"], (left, 0), value=PAD),
            "attention_mask": nn.functional.pad(prompt["attention_mask"], (left, 0)),
            "prefix_embeds": nn.functional.pad(prompt["prefix_embeds"], (0, 0, 0, right), value=3.0),
            "prefix_mask": torch.arange(prefix)[None] < prefix - right,
        })  # fmt: skip
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def write(
    decoder: PretrainedDecoder, given: dict[str, torch.Tensor], end_ids: tuple[int, ...] = (), **kept: Any
) -> Any:
    settings = GenerationConfig(**{"max_new_tokens": NEW, **kept})
    return decoder.generate(**given, settings=settings, end_ids=end_ids, pad_id=PAD)


def greedy_by_hand(decoder: PretrainedDecoder, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """The whole text again for each token, without a cache."""
    ids, mask = given["input_ids"], given["attention_mask"]
    for _ in range(NEW):
        logits = decoder(**given | {"input_ids": ids, "attention_mask": mask}).logits[:, -1]
        ids = torch.cat((ids, logits.argmax(dim=-1, keepdim=True)), dim=1)
        mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
    return ids[:, -NEW:]


def test_greedy_text_with_the_cache_is_that_without(decoder: PretrainedDecoder) -> None:
    given = batched(prompts())
    new = write(decoder, given)
    assert new.shape == (3, NEW)
    assert new.dtype == torch.int64
    assert torch.equal(new, greedy_by_hand(decoder, given))
    assert len(set(new.flatten().tolist())) > 6  # text that varies, so that a fault would be seen


def test_a_batch_of_unequal_prompts_gives_what_each_gives_alone(decoder: PretrainedDecoder) -> None:
    together, given = batched(prompts()), prompts()
    new, logits = write(decoder, together), decoder(**together).logits
    beams = write(decoder, together, num_beams=3)
    for row, alone in enumerate(given):
        real = torch.cat((together["prefix_mask"][row], together["attention_mask"][row].bool()))
        torch.testing.assert_close(logits[row, real], decoder(**alone).logits[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(new[row], write(decoder, alone)[0])
        assert torch.equal(beams[row], write(decoder, alone, num_beams=3)[0])


def test_beams_with_the_cache_are_those_without(decoder: PretrainedDecoder) -> None:
    ids = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(7))
    given = {"input_ids": ids[:, 4:], "attention_mask": torch.ones(2, 5), "prefix_embeds": decoder.embed(ids[:, :4])}
    new = write(decoder, given, num_beams=3)
    plain = decoder.causal_lm.generate(ids, num_beams=3, max_new_tokens=NEW, use_cache=False, pad_token_id=PAD)
    assert torch.equal(new, plain[:, 9:])

    def likelihood(text: torch.Tensor) -> torch.Tensor:
        labels = torch.cat((torch.full_like(ids[:, 4:], -100), text), dim=1)
        whole = torch.cat((ids[:, 4:], text), dim=1)
        return -decoder(whole, torch.ones_like(whole), given["prefix_embeds"], labels).loss

    assert not torch.equal(new, write(decoder, given))
    assert likelihood(new) > likelihood(write(decoder, given))


def test_text_stops_at_an_end_token_and_others_are_padded(decoder: PretrainedDecoder) -> None:
    given = batched(prompts())
    free = write(decoder, given)
    end = int(free[0, 2])
    stopped = write(decoder, given, (end, 263))
    for row in range(3):
        hits = (free[row] == end).nonzero().flatten().tolist()
        length = hits[0] + 1 if hits else NEW
        assert torch.equal(stopped[row, :length], free[row, :length])
        assert (stopped[row, length:] == PAD).all()
    alone = write(decoder, prompts()[0], (end,))
    assert alone.tolist() == [free[0, : free[0].tolist().index(end) + 1].tolist()]


def test_sampling_draws_from_the_distribution_and_follows_the_seed(decoder: PretrainedDecoder) -> None:
    alone = prompts()[0]
    many = {name: value.expand(600, *value.shape[1:]) for name, value in alone.items()}
    probabilities = (decoder(**alone).logits[0, -1] / 2.0).softmax(dim=-1)
    torch.manual_seed(11)
    drawn = write(decoder, many, temperature=2.0, max_new_tokens=1)
    counts = torch.bincount(drawn.flatten(), minlength=VOCAB) / 600
    assert (counts - probabilities).abs().max() < 0.06
    assert drawn.unique().numel() > 50  # more than any top-k that nobody asked for
    torch.manual_seed(11)
    assert torch.equal(write(decoder, many, temperature=2.0, max_new_tokens=1), drawn)
    greedy = write(decoder, alone)
    assert torch.equal(write(decoder, alone, temperature=1.0, top_p=1e-6), greedy)
    assert torch.equal(write(decoder, alone, temperature=1e-4), greedy)


def test_each_token_is_computed_when_it_is_asked_for(decoder: PretrainedDecoder) -> None:
    read: list[int] = []
    hook = decoder.model.model.layers[0].register_forward_pre_hook(lambda *_: read.append(1))
    settings = GenerationConfig(max_new_tokens=NEW)
    columns = decoder.write(**prompts()[0], settings=settings, end_ids=(), pad_id=PAD)
    assert read == []
    first = [next(columns), next(columns)]
    assert len(read) == 2
    new = torch.stack([*first, *columns], dim=1)
    assert len(read) == NEW
    hook.remove()
    assert torch.equal(new, write(decoder, prompts()[0]))
    with pytest.raises(ConfigError, match="beams are chosen at the end"):
        decoder.write(**prompts()[0], settings=GenerationConfig(num_beams=2), end_ids=(), pad_id=PAD)


def test_generation_settings_of_the_checkpoint_do_not_leak_in(folder: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert theirs.generation_config.repetition_penalty == 1.5
    decoder = PretrainedDecoder(DecoderConfig(model=str(folder))).eval()
    ids = torch.randint(256, (4, 5))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "prefix_embeds": torch.zeros(4, 0, HIDDEN)}
    new = write(decoder, given)
    assert torch.equal(new, greedy_by_hand(decoder, given))
    # transformers takes from the checkpoint what a caller leaves open, such as the penalty here.
    embeds = theirs.get_input_embeddings()(ids)
    leaked = theirs.generate(inputs_embeds=embeds, do_sample=False, max_new_tokens=NEW, eos_token_id=None)
    assert not torch.equal(leaked, new)


def test_training_mode_is_refused_and_nothing_is_left_behind(decoder: PretrainedDecoder) -> None:
    alone = prompts()[0]
    decoder.train()
    with pytest.raises(ConfigError, match="training mode"):
        write(decoder, alone)
    decoder.eval()
    write(decoder, alone)
    decoder(**alone, labels=alone["input_ids"]).loss  # noqa: B018 - no inference tensor stayed in the model
    prefix = alone["prefix_embeds"].requires_grad_()
    decoder(**alone | {"prefix_embeds": prefix}, labels=alone["input_ids"]).loss.backward()
    assert prefix.grad.abs().max() > 0


@pytest.mark.parametrize("implementation", ["static", "model"])
def test_the_recursion_refuses_a_cache_without_room_for_it(folder: Path, implementation: str) -> None:
    decoder = PretrainedDecoder(DecoderConfig(model=str(folder), freeze=True, use_trm_recursion=True)).eval()
    model, ids = decoder.causal_lm, prompts()[0]["input_ids"]
    if implementation == "static":
        cache: Any = transformers.StaticCache(config=decoder.model.config, max_cache_len=32)
    else:
        cache = transformers.DynamicCache(config=decoder.model.config)
    with pytest.raises(ConfigError, match=r"past_key_values: .*pass an empty DynamicCache\(\)"):
        model(ids, past_key_values=cache, use_cache=True)
