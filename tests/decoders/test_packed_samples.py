"""Several samples in a row: the loss, states and gradients of padded samples, from fewer tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from impresa.config.decoder import DecoderConfig, LoraConfig, RecursionConfig
from impresa.decoders.base import Decoder, DecoderOutput
from impresa.decoders.pretrained import PretrainedDecoder
from impresa.decoders.trm import TRMDecoder
from impresa.errors import ConfigError
from packed_texts import assert_close_in_norm
from tiny_causal import FAMILIES, save_causal
from tiny_qwen import save_qwen

P, T = 4, 12
LENGTHS = {"one, full and equal": (12, 2, 5, 1, 5, 3), "all full": (12, 12), "one alone": (6,)}
PREFIXES = torch.tensor([[True] * 4, [True, True, False, False], [False, True, True, True], [False] * 4])
TWICE = RecursionConfig(num_cycles=2, num_steps=2, num_rounds=2, dropout=0.0)
TRM = DecoderConfig(type="trm", dim=64, num_heads=2, vocab_size=300, recursion=TWICE)
PLAIN = RecursionConfig(recursive=False, dropout=0.0)
OF_QWEN: dict[str, dict[str, Any]] = {
    "qwen": {},
    "qwen, recomputed": {"activation_checkpointing": True},
    "qwen, adapted": {"use_lora": True, "lora": LoraConfig(dropout=0.0)},
    "qwen, recursion": {"use_trm_recursion": True, "recursion": TWICE},
}
OURS = {
    "trm": TRM,
    "trm, recomputed": replace(TRM, activation_checkpointing=True),
    "plain": replace(TRM, recursion=PLAIN),
}


def decoder_of(name: str, folder: Path) -> Decoder:
    torch.manual_seed(0)
    if name in OURS:
        return TRMDecoder(OURS[name], 264)
    if name in OF_QWEN:
        decoder = PretrainedDecoder(DecoderConfig(model=str(save_qwen(folder)), **OF_QWEN[name]))
        if decoder.recursion is not None:
            torch.nn.init.ones_(decoder.recursion.gate)
        return decoder
    return PretrainedDecoder(DecoderConfig(type="causal_lm", model=str(save_causal(folder, name)), max_len=16))


def samples(hidden: int, lengths: tuple[int, ...]) -> dict[str, Tensor]:
    """Prefixes with gaps, and texts whose second half, or single token, is supervised."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 256, (len(lengths), T), generator=generator)
    mask = torch.arange(T) < torch.tensor(lengths)[:, None]
    asked = torch.arange(T) < torch.tensor(lengths)[:, None] // 2
    prefix_mask = PREFIXES[torch.arange(len(lengths)) % 3]
    prefix = torch.randn(len(lengths), P, hidden, generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "prefix_embeds": prefix.requires_grad_(),
        "labels": ids.masked_fill(~mask | asked, -100),
        "prefix_mask": prefix_mask,
    }


def computed(decoder: Decoder, given: dict[str, Tensor], **options: Any) -> tuple[DecoderOutput, dict[str, Tensor]]:
    decoder.zero_grad(set_to_none=True)
    given["prefix_embeds"].grad = None
    output = decoder(**given, **options)
    output.loss.backward()
    gradients = {name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}
    assert given["prefix_embeds"].grad is not None
    return output, gradients | {"prefix": given["prefix_embeds"].grad}


def tokens_of(decoder: Decoder, given: dict[str, Tensor]) -> int:
    """Tokens that the first attention computes."""
    module = next(m for name, m in decoder.named_modules() if name.endswith(("query_key", "q_proj")))
    found: list[int] = []
    hook = module.register_forward_hook(lambda _, __, output: found.append(output.numel() // output.shape[-1]))
    decoder(**given)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("name", [*OURS, *OF_QWEN])
def test_loss_and_gradients_are_those_of_padded_samples(name: str, lengths: tuple[int, ...], tmp_path: Path) -> None:
    decoder = decoder_of(name, tmp_path)
    decoder.check_packing()
    given = samples(decoder.hidden_size, lengths)
    padded, expected = computed(decoder, given)
    decoder.packing = True
    packed, found = computed(decoder, given)
    torch.testing.assert_close(packed.loss, padded.loss, rtol=1e-6, atol=1e-6)
    assert_close_in_norm(found, expected, 5e-6)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("bloom", "opt")])
def test_logits_of_other_language_models_are_those_of_padded_samples(family: str, tmp_path: Path) -> None:
    """With attention to windows that are shorter than a sample, and with learned positions."""
    decoder = decoder_of(family, tmp_path)
    decoder.check_packing()
    given = samples(decoder.hidden_size, LENGTHS["one, full and equal"])
    given["prefix_mask"] = torch.arange(P) >= torch.tensor([0, 2, 1, 0, 0, 3])[:, None]  # windows count gaps, too
    decoder.eval()
    padded = decoder(**given, return_logits=True)
    decoder.packing = True
    packed = decoder(**given, return_logits=True)
    real = torch.cat((given["prefix_mask"], given["attention_mask"]), dim=1)
    scale = padded.logits[real].detach().abs().max()
    torch.testing.assert_close(packed.logits[real] / scale, padded.logits[real] / scale, rtol=1e-6, atol=2e-6)
    assert torch.equal(packed.hits, padded.hits)


@pytest.mark.parametrize("name", ["trm", "qwen"])
def test_fewer_tokens_are_computed(name: str, tmp_path: Path) -> None:
    decoder = decoder_of(name, tmp_path)
    given = samples(decoder.hidden_size, LENGTHS["one, full and equal"])
    assert tokens_of(decoder, given) == 6 * (P + T)
    decoder.packing = True
    num_real = int(given["prefix_mask"].sum() + given["attention_mask"].sum())
    assert num_real <= tokens_of(decoder, given) < 1.1 * num_real
    with torch.no_grad():
        assert tokens_of(decoder, given) == 6 * (P + T)  # training alone


def test_several_questions_behind_one_prefix_stay_as_they_are() -> None:
    decoder = TRMDecoder(TRM, 264)
    rows, given = torch.tensor([0, 0, 1]), samples(64, (12, 2, 5))
    shared = given | {"prefix_embeds": given["prefix_embeds"][:2], "prefix_mask": given["prefix_mask"][:2]}
    padded = decoder(**shared, prefix_of_row=rows)
    decoder.packing = True
    assert torch.equal(decoder(**shared, prefix_of_row=rows).loss, padded.loss)
    each = torch.tensor([2, 0, 1])
    own = decoder(**given, prefix_of_row=each)
    decoder.packing = False
    torch.testing.assert_close(own.loss, decoder(**given, prefix_of_row=each).loss, rtol=1e-6, atol=1e-6)


def test_a_model_that_numbers_positions_itself_is_refused(tmp_path: Path) -> None:
    for family, fault in {"bloom": "numbers the positions", "opt": "computes several"}.items():
        decoder = decoder_of(family, tmp_path / family)
        with pytest.raises(ConfigError, match=rf"^optimization\.packing: a {family} model {fault}.*leave it out"):
            decoder.check_packing()


def test_a_model_whose_texts_see_each_other_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = decoder_of("qwen", tmp_path)
    blocks = decoder.model.base_model
    forward = blocks.forward
    with_mask = {"attention_mask": torch.ones(1, 6, dtype=torch.long)}  # by which transformers looks for no texts
    monkeypatch.setattr(
        blocks, "forward", lambda **given: forward(**given | (with_mask if given["attention_mask"] is None else {}))
    )
    with pytest.raises(ConfigError, match=r"^optimization\.packing: a qwen2 model computes several.*leave it out"):
        decoder.check_packing()


NARROW = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}


@pytest.mark.parametrize("family", ["gemma3", "qwen"])
def test_gaps_that_a_window_counts_are_refused(family: str, tmp_path: Path) -> None:
    """They are why a padded sample and a packed one differ there."""
    if family == "qwen":
        decoder: Decoder = PretrainedDecoder(DecoderConfig(model=str(save_qwen(tmp_path, **NARROW)), max_len=16))
    else:
        decoder = decoder_of(family, tmp_path)
    given = samples(decoder.hidden_size, (12, 12, 2))
    decoder.check_prefix(P, has_gaps=True)
    padded = decoder(**given).loss
    decoder.packing = True
    assert abs(decoder(**given).loss - padded) > 1e-3
    decoder.check_prefix(P)
    fault = r"model attends to windows of 8 tokens, which count what a missing .* the 20 tokens that they may have"
    with pytest.raises(ConfigError, match=rf"^optimization\.packing: a \w+ {fault}"):
        decoder.check_prefix(P, has_gaps=True)
    wide: Any = decoder
    wide.model.config.sliding_window = 20
    decoder.check_prefix(P, has_gaps=True)
