"""NF4 with double quantisation, and LLM.int8, on the CPU: what is quantised, how well, and with which arithmetic."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from impresa.config.decoder import DecoderConfig, LoraConfig
from impresa.config.optimization import Precision
from impresa.decoders.pretrained import PretrainedDecoder
from impresa.decoders.quantization import check_device, compute_dtype, int8_layers, quantized_layers
from impresa.encoders.lora import linear_layers
from impresa.errors import ConfigError
from tiny_causal import save_causal
from tiny_qwen import HIDDEN, VOCAB, save_qwen

WIDEST_GAP = 1 - 0.6961928
"""Between two neighbouring values of NF4, whose range is -1 to 1 (QLoRA, appendix E)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen(tmp_path_factory.mktemp("qwen"), tied=False)


def build(folder: Path, precision: Precision = "32-true", **settings: object) -> PretrainedDecoder:
    return PretrainedDecoder(DecoderConfig(model=str(folder), load_in_4bit=True, **settings), precision=precision)


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(VOCAB, (2, 5))
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "prefix_embeds": torch.randn(2, 3, HIDDEN),
        "labels": ids,
    }  # fmt: skip


def test_blocks_are_nf4_quantised_twice_and_the_head_and_embeddings_are_not(folder: Path) -> None:
    decoder = build(folder)
    layers = quantized_layers(decoder)
    assert len(layers) == 2 * 7
    for layer in layers:
        state = layer.weight.quant_state
        assert (state.quant_type, state.nested, state.blocksize) == ("nf4", True, 64)
        assert state.state2.blocksize == 256
        assert layer.weight.dtype == torch.uint8
        assert layer.compute_dtype == torch.float32
    original = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert type(decoder.model.lm_head) is nn.Linear
    assert torch.equal(decoder.model.lm_head.weight, original.lm_head.weight)
    assert torch.equal(decoder.model.model.embed_tokens.weight, original.model.embed_tokens.weight)


def test_each_weight_is_within_half_a_gap_of_its_block(folder: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit

    original = dict(transformers.AutoModelForCausalLM.from_pretrained(folder).named_modules())
    decoder = build(folder)
    names = {id(module): name for name, module in decoder.model.named_modules()}
    for layer in quantized_layers(decoder):
        weight = original[names[id(layer)]].weight.detach()
        error = (dequantize_4bit(layer.weight.data, layer.weight.quant_state) - weight).reshape(-1, 64).abs()
        largest = weight.reshape(-1, 64).abs().amax(dim=1)
        # The second quantisation moves the scale of a block by one percent at most.
        assert (error.amax(dim=1) <= (WIDEST_GAP / 2 + 0.01) * largest).all()
        assert 0.05 < error.mean() / weight.abs().mean() < 0.12


@pytest.mark.parametrize(
    ("precision", "held", "computed"),
    [
        ("32-true", torch.float32, torch.float32),
        ("16-mixed", torch.float32, torch.float16),
        ("bf16-mixed", torch.bfloat16, torch.bfloat16),
        ("bf16-true", torch.bfloat16, torch.bfloat16),
    ],
)
def test_the_precision_of_the_run_decides_what_is_held_and_computed(
    folder: Path, precision: Precision, held: torch.dtype, computed: torch.dtype
) -> None:
    assert compute_dtype(precision) == computed
    decoder = build(folder, precision, use_lora=True)
    assert {layer.base_layer.compute_dtype for layer in decoder.modules() if hasattr(layer, "base_layer")} == {computed}
    assert decoder.model.lm_head.weight.dtype == held
    assert {parameter.dtype for parameter in decoder.parameters() if parameter.requires_grad} == {torch.float32}


def test_bfloat16_gives_a_loss_near_that_of_float32(folder: Path) -> None:
    given = inputs()
    losses = [build(folder, precision)(**given).loss for precision in ("32-true", "bf16-mixed")]
    assert losses[0].dtype == losses[1].dtype == torch.float32
    assert 0 < abs(losses[0] - losses[1]) / losses[0] < 0.02


def test_gradients_flow_on_after_an_evaluation_and_both_compute_the_same(folder: Path) -> None:
    """A processor with bfloat16 instructions would repack the weights at the first evaluation."""
    decoder, given = build(folder), inputs()
    trained = decoder.train()(**given, return_logits=True).logits
    with torch.inference_mode():
        torch.testing.assert_close(decoder.eval()(**given, return_logits=True).logits, trained, atol=1e-5, rtol=1e-5)
    given["prefix_embeds"].requires_grad_()
    decoder.train()(**given).loss.backward()
    assert given["prefix_embeds"].grad.abs().max() > 1e-3


def test_widths_that_the_library_gets_wrong_are_refused(tmp_path: Path) -> None:
    folder = save_qwen(tmp_path, hidden_size=32)
    with pytest.raises(ConfigError, match=r"load_in_4bit: a layer of .* reads 32 features, which is no multiple of 64"):
        build(folder)


@pytest.mark.parametrize("package", ["bitsandbytes", "accelerate"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_missing_library_is_named_with_the_mend(
    folder: Path, package: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    needs = rf"load_in_{bits}bit: it needs {package}.*; pip install 'impresa\[qwen\]'"
    with pytest.raises(ConfigError, match=needs):
        (build if bits == 4 else eight)(folder)


def eight(folder: Path, precision: Precision = "32-true", **settings: object) -> PretrainedDecoder:
    config = DecoderConfig(type="causal_lm", model=str(folder), load_in_8bit=True, **settings)
    return PretrainedDecoder(config, precision=precision)


def test_eight_bits_are_in_the_blocks_alone_and_near_the_weights(folder: Path) -> None:
    decoder = eight(folder)
    original = dict(transformers.AutoModelForCausalLM.from_pretrained(folder).named_modules())
    names = {id(module): name for name, module in decoder.model.named_modules()}
    layers = int8_layers(decoder)
    assert len(layers) == 2 * 7
    for layer in layers:
        weight, scales = original[names[id(layer)]].weight.detach(), layer.weight.SCB[:, None] / 127
        assert layer.weight.dtype == torch.int8
        assert ((layer.weight.data * scales - weight).abs() <= 0.51 * scales + 1e-3).all()  # it was rounded to float16
        assert not layer.weight.requires_grad
    assert torch.equal(decoder.model.lm_head.weight, original["lm_head"].weight)
    assert torch.equal(decoder.model.model.embed_tokens.weight, original["model.embed_tokens"].weight)


def test_eight_bits_compute_the_same_in_training_and_lie_between_four_and_all(folder: Path) -> None:
    given = inputs()
    exact = PretrainedDecoder(DecoderConfig(model=str(folder)))(**given, return_logits=True).logits
    decoder = eight(folder)
    given["prefix_embeds"].requires_grad_()
    found = decoder.train()(**given, return_logits=True)
    assert torch.equal(decoder.eval()(**given, return_logits=True).logits, found.logits)
    found.loss.backward()
    assert given["prefix_embeds"].grad.abs().max() > 1e-3
    four = build(folder)(**given, return_logits=True).logits
    assert 1e-3 < (found.logits - exact).abs().mean() < 0.2 * (four - exact).abs().mean()


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2"])
@pytest.mark.parametrize("bits", [4, 8])
def test_other_families_are_quantised_in_their_blocks(family: str, bits: int, tmp_path: Path) -> None:
    folder = save_causal(tmp_path, family)
    config = DecoderConfig(type="causal_lm", model=str(folder), max_len=64, **{f"load_in_{bits}bit": True})
    decoder, given = PretrainedDecoder(config).eval(), inputs()
    blocks = decoder.model.base_model
    whole = [
        name for name in linear_layers(blocks) if type(blocks.get_submodule(name)).__name__ in ("Linear", "Conv1D")
    ]
    assert whole == []
    assert len(quantized_layers(decoder) if bits == 4 else int8_layers(decoder)) == len(linear_layers(blocks)) > 4
    assert type(decoder.model.get_output_embeddings()) is nn.Linear
    exact = PretrainedDecoder(replace(config, load_in_4bit=False, load_in_8bit=False)).eval()(**given).loss
    assert abs(decoder(**given).loss - exact) < 0.5 * exact


def test_adapters_on_eight_bits_learn_and_are_all_that_is_saved(folder: Path) -> None:
    decoder, given = eight(folder, use_lora=True, lora=LoraConfig(r=2, dropout=0.0)), inputs()
    trained = {name: parameter for name, parameter in decoder.named_parameters() if parameter.requires_grad}
    assert set(decoder.state_to_save()) == set(trained)
    assert all("lora_" in name for name in trained)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    decoder.train()(**given).loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in trained.values())
    again = eight(folder, use_lora=True, lora=LoraConfig(r=2, dropout=0.0))
    again.load_state_dict(decoder.state_to_save(), strict=False)
    assert torch.equal(again.eval()(**given).loss, decoder.eval()(**given).loss)


def test_what_eight_bits_know_of_their_weights_moves_with_them(folder: Path) -> None:
    """A whole model is moved between two answers; bitsandbytes leaves the scales behind."""
    decoder, given = eight(folder).eval(), inputs()
    before = decoder(**given).loss
    assert torch.equal(decoder.to("cpu")(**given).loss, before)
    decoder._apply(torch.clone)  # as `to` calls it for another device
    for layer in int8_layers(decoder):
        assert layer.weight.CB.data_ptr() == layer.weight.data.data_ptr()
        assert layer.weight.SCB is not None
        assert layer.state.CB is layer.state.SCB is None
    assert torch.equal(decoder(**given).loss, before)


def test_devices_without_products_of_eight_bits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_device(torch.device("cpu"))
    with pytest.raises(
        ConfigError, match=r"^decoder\.load_in_8bit: bitsandbytes has no eight-bit products for mps; use"
    ):
        check_device(torch.device("mps"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    with pytest.raises(
        ConfigError, match=r"this GPU has compute capability 7\.0, below 7\.5; use decoder\.load_in_4bit"
    ):
        check_device(torch.device("cuda"))
