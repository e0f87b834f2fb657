"""Our Qwen decoder against transformers' and peft's own models, on the same embeddings, in float32."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from impresa.config.decoder import DecoderConfig, LoraConfig
from impresa.decoders.base import IGNORED
from impresa.decoders.pretrained import PretrainedDecoder
from impresa.decoders.quantization import quantized_layers
from tiny_qwen import HIDDEN, VOCAB, save_qwen

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
KINDS = ("qwen2", "qwen3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "qwen2": save_qwen(tmp_path_factory.mktemp("qwen2"), "qwen2", tied=True),
        "qwen3": save_qwen(tmp_path_factory.mktemp("qwen3"), "qwen3", tied=False),
    }


def batch() -> dict[str, torch.Tensor]:
    """Two texts behind a prefix of three; the second is shorter and padded on the right."""
    ids = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, :4] = IGNORED
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def reference(model: Any, prefix: torch.Tensor) -> Any:
    """What transformers computes for the joined embeddings, and the mask of what is real."""
    given = batch()
    embeds = torch.cat((prefix, model.get_input_embeddings()(given["input_ids"])), dim=1)
    mask = torch.cat((torch.ones(prefix.shape[:2], dtype=torch.long), given["attention_mask"]), dim=1)
    labels = torch.cat((torch.full(prefix.shape[:2], IGNORED), given["labels"]), dim=1)
    return model(inputs_embeds=embeds, attention_mask=mask, labels=labels), mask.bool()


def assert_same(decoder: PretrainedDecoder, model: Any, names: dict[str, str]) -> None:
    """Logits of real positions, loss, and gradients of the prefix and of the named parameters: ours -> theirs."""
    ours = torch.randn(2, 3, HIDDEN).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    expected, real = reference(model, theirs)
    out = decoder(prefix_embeds=ours, **batch(), return_logits=True)
    torch.testing.assert_close(out.logits[real], expected.logits[real], **TOLERANCE)
    torch.testing.assert_close(out.loss, expected.loss, **TOLERANCE)
    out.loss.backward()
    expected.loss.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, **TOLERANCE)
    assert ours.grad.abs().max() > 1e-3
    own, other = dict(decoder.named_parameters()), dict(model.named_parameters())
    for name, their_name in names.items():
        assert own[name].grad.abs().max() > 0, name
        torch.testing.assert_close(own[name].grad, other[their_name].grad, **TOLERANCE, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_loss_and_gradients_are_those_of_transformers(kind: str, folders: dict[str, Path]) -> None:
    decoder = PretrainedDecoder(DecoderConfig(model=str(folders[kind])))
    model = transformers.AutoModelForCausalLM.from_pretrained(folders[kind])
    names = {f"model.{name}": name for name, _ in model.named_parameters()}
    assert {name for name, parameter in decoder.named_parameters() if parameter.requires_grad} == set(names)
    assert_same(decoder, model, names)


@pytest.mark.parametrize("kind", KINDS)
def test_with_adapters_they_are_those_of_peft(kind: str, folders: dict[str, Path]) -> None:
    import peft

    lora = LoraConfig(r=3, alpha=5.0, dropout=0.0)
    decoder = PretrainedDecoder(DecoderConfig(model=str(folders[kind]), use_lora=True, lora=lora))
    settings = peft.LoraConfig(r=3, lora_alpha=5.0, target_modules=list(lora.target_modules))
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(folders[kind]), settings)
    theirs = dict(model.named_parameters())
    names = {f"model.{name.removeprefix('base_model.model.')}": name for name in theirs if theirs[name].requires_grad}
    own = {name: parameter for name, parameter in decoder.named_parameters() if parameter.requires_grad}
    assert own.keys() == names.keys()
    with torch.no_grad():
        for name, parameter in own.items():
            theirs[names[name]].copy_(nn.init.normal_(parameter, std=0.2))
    assert_same(decoder, model, names)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_start_as_the_identity(kind: str, folders: dict[str, Path]) -> None:
    plain = PretrainedDecoder(DecoderConfig(model=str(folders[kind]))).eval()
    adapted = PretrainedDecoder(DecoderConfig(model=str(folders[kind]), use_lora=True)).eval()
    given = {name: batch()[name] for name in ("input_ids", "attention_mask")} | {
        "prefix_embeds": torch.randn(2, 3, HIDDEN)
    }
    assert torch.equal(adapted(**given).logits, plain(**given).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_four_bits_are_the_model_with_dequantised_weights(kind: str, folders: dict[str, Path]) -> None:
    from bitsandbytes.functional import dequantize_4bit

    decoder = PretrainedDecoder(DecoderConfig(model=str(folders[kind]), load_in_4bit=True))
    model = transformers.AutoModelForCausalLM.from_pretrained(folders[kind])
    exact = copy.deepcopy(model)
    layers = [layer for layer in model.model.layers.modules() if isinstance(layer, nn.Linear)]
    packed = quantized_layers(decoder)
    assert len(packed) == len(layers) == 14
    with torch.no_grad():
        for layer, four_bits in zip(layers, packed, strict=True):
            layer.weight.copy_(dequantize_4bit(four_bits.weight.data, four_bits.weight.quant_state))
    assert_same(decoder, model, {})
    # The weights have moved, and by that the answers.
    prefix = torch.randn(2, 3, HIDDEN)
    moved = reference(model, prefix)[0].logits - reference(exact, prefix)[0].logits
    assert moved.abs().max() > 0.1
