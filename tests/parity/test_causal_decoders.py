"""Decoders of several families against transformers' own models: logits, loss, gradients, adapters and generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from impresa.config.decoder import DecoderConfig, GenerationConfig, LoraConfig
from impresa.decoders.base import IGNORED
from impresa.decoders.pretrained import PretrainedDecoder
from tiny_causal import FAMILIES, save_causal
from tiny_qwen import VOCAB

TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}
PREFIX, TEXT = 5, 12


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_causal(tmp_path_factory.mktemp(request.param), request.param)


def config_of(folder: Path, **settings: Any) -> DecoderConfig:
    return DecoderConfig(type="causal_lm", model=str(folder), max_len=64, **settings)


def reference(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (2, T) and their mask; the second is shorter and padded on the right."""
    ids = torch.randint(VOCAB, (2, TEXT), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    return ids, mask


def test_logits_loss_and_gradients_are_those_of_transformers(folder: Path) -> None:
    decoder, model = PretrainedDecoder(config_of(folder)).eval(), reference(folder).eval()
    ids, mask = texts()
    ours = torch.randn(2, PREFIX, decoder.hidden_size).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, :4] = IGNORED
    seen = torch.cat((torch.ones(2, PREFIX, dtype=torch.long), mask), dim=1)
    expected = model(
        inputs_embeds=torch.cat((theirs, model.get_input_embeddings()(ids)), dim=1),
        attention_mask=seen,
        labels=torch.cat((torch.full((2, PREFIX), IGNORED), labels), dim=1),
    )
    found = decoder(ids, mask, ours, labels, return_logits=True)
    torch.testing.assert_close(found.logits[seen.bool()], expected.logits[seen.bool()], **TOLERANCE)
    torch.testing.assert_close(found.loss, expected.loss, **TOLERANCE)
    alone = decoder(ids, mask, ours, labels)  # where the last block may leave out positions that nothing reads
    torch.testing.assert_close(alone.loss, expected.loss, **TOLERANCE)
    alone.loss.backward()
    expected.loss.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, **TOLERANCE)
    their_gradients = {f"model.{name}": parameter.grad for name, parameter in model.named_parameters()}
    own = dict(decoder.named_parameters())
    assert own.keys() == their_gradients.keys()
    for name, parameter in own.items():
        torch.testing.assert_close(parameter.grad, their_gradients[name], **TOLERANCE, msg=name)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_text_is_that_of_transformers_generate(folder: Path, num_beams: int) -> None:
    decoder, model = PretrainedDecoder(config_of(folder)).eval(), reference(folder).eval()
    ids, mask = (tensor.flip(1) for tensor in texts())  # generation pads on the left
    prefix = torch.randn(2, PREFIX, decoder.hidden_size)
    settings = GenerationConfig(max_new_tokens=12, num_beams=num_beams)
    seen = torch.cat((torch.ones(2, PREFIX, dtype=torch.long), mask), dim=1)
    expected = model.generate(
        inputs_embeds=torch.cat((prefix, model.get_input_embeddings()(ids)), dim=1),
        attention_mask=seen,
        generation_config=transformers.GenerationConfig(
            max_new_tokens=12, num_beams=num_beams, do_sample=False, eos_token_id=[7], pad_token_id=0
        ),
    )
    found = decoder.generate(ids, mask, prefix, settings=settings, end_ids=[7], pad_id=0)
    assert torch.equal(found, expected)


def test_adapters_start_as_the_identity_and_learn(folder: Path) -> None:
    lora = LoraConfig(r=2, dropout=0.0, target_modules="all-linear")
    plain = PretrainedDecoder(config_of(folder)).eval()
    adapted = PretrainedDecoder(config_of(folder, use_lora=True, lora=lora)).eval()
    ids, mask = texts()
    prefix = torch.randn(2, PREFIX, plain.hidden_size)
    torch.testing.assert_close(adapted(ids, mask, prefix).logits, plain(ids, mask, prefix).logits)
    trained = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert set(adapted.state_to_save()) == set(trained)
    for parameter in trained.values():
        nn.init.normal_(parameter, std=0.1)
    adapted(ids, mask, prefix, ids).loss.backward()
    assert all(parameter.grad is not None for parameter in trained.values())
