"""NF4 with double quantisation, on the CPU: what is quantised, how well, and with which arithmetic."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from impresa.config.decoder import DecoderConfig
from impresa.config.optimization import Precision
from impresa.decoders.quantization import compute_dtype, quantized_layers
from impresa.decoders.qwen import QwenDecoder
from impresa.errors import ConfigError
from tiny_qwen import HIDDEN, VOCAB, save_qwen

WIDEST_GAP = 1 - 0.6961928
"""Between two neighbouring values of NF4, whose range is -1 to 1 (QLoRA, appendix E)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen(tmp_path_factory.mktemp("qwen"), tied=False)


def build(folder: Path, precision: Precision = "32-true", **settings: object) -> QwenDecoder:
    return QwenDecoder(DecoderConfig(model=str(folder), load_in_4bit=True, **settings), precision=precision)


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
def test_a_missing_library_is_named_with_the_mend(folder: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"load_in_4bit: it needs {package}.*; pip install 'impresa\[qwen\]'"):
        build(folder)
