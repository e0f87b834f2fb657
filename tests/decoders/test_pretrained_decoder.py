"""Which language models of transformers can stand behind a prefix, and what is said of those that cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from impresa.config.decoder import DecoderConfig, GenerationConfig, LoraConfig
from impresa.decoders.pretrained import PretrainedDecoder
from impresa.errors import ConfigError
from tiny_causal import save_causal
from tiny_qwen import save_qwen

SMALL: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}


def build(folder: Path, **settings: Any) -> PretrainedDecoder:
    return PretrainedDecoder(DecoderConfig(type="causal_lm", model=str(folder), **settings))


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        (transformers.T5Config(d_model=64), "a t5 model, which has an encoder beside its decoder"),
        (transformers.BartConfig(d_model=64), "a bart model, which has an encoder beside its decoder"),
        (transformers.BertConfig(**SMALL), "a bert model, which is no decoder that writes text"),
        (transformers.ViTConfig(hidden_size=64), "a vit model, which is no decoder that writes text"),
        (transformers.Gemma3Config(), "a gemma3 model, which has encoders of images or sounds of its own"),
        (transformers.XLNetConfig(d_model=64), "a xlnet model, which takes no past_key_values"),
        (transformers.RecurrentGemmaConfig(), "a recurrent_gemma model, which keeps a running state"),
        (transformers.Lfm2Config(full_attn_idxs=[1]), "a lfm2 model, which keeps a running state"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_what_cannot_stand_behind_a_prefix_is_refused_in_one_line(config: Any, fault: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as caught:
        build(tmp_path)
    (line,) = caught.value.lines
    assert line.startswith(f"decoder.model: {tmp_path} is {fault}")
    assert line.endswith("; use a causal language model such as Llama, Gemma, GPT-2 or Qwen")


def test_qwen_is_built_by_either_name_and_others_by_one(tmp_path: Path) -> None:
    qwen, llama = save_qwen(tmp_path / "qwen"), save_causal(tmp_path / "llama", "llama")
    ids, prefix = torch.randint(200, (1, 5)), torch.randn(1, 3, 64)
    found = [
        PretrainedDecoder(DecoderConfig(type=kind, model=str(qwen))).eval()(ids, torch.ones_like(ids), prefix).logits
        for kind in ("qwen", "causal_lm")
    ]
    assert torch.equal(*found)
    with pytest.raises(ConfigError, match=r"is a llama model; use a causal Qwen2.* or `decoder\.type` causal_lm"):
        PretrainedDecoder(DecoderConfig(type="qwen", model=str(llama)))


def test_more_tokens_than_the_model_has_positions_for_are_refused(tmp_path: Path) -> None:
    folder = save_causal(tmp_path, "gpt2")  # of 128 positions
    with pytest.raises(
        ConfigError, match=r"^decoder\.max_len: prefix, .* up to 200 tokens, but decoder\.model has 128"
    ):
        build(folder, max_len=200)
    decoder, ids = build(folder, max_len=120).eval(), torch.randint(200, (1, 5))
    assert decoder(ids, torch.ones_like(ids), torch.randn(1, 8, 64)).logits.isfinite().all()
    with pytest.raises(ConfigError, match=r"of up to 129 tokens, but decoder\.model has 128 positions; lower it"):
        decoder(ids, torch.ones_like(ids), torch.randn(1, 9, 64))
    long = GenerationConfig(max_new_tokens=200)
    with pytest.raises(ConfigError, match=r"of up to 129 tokens"):
        decoder.generate(ids, torch.ones_like(ids), torch.randn(1, 8, 64), settings=long, end_ids=[], pad_id=0)


def test_a_frozen_gpt_2_answers_the_same_in_training(tmp_path: Path) -> None:
    folder = save_causal(tmp_path, "gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    decoder, ids = build(folder, freeze=True, max_len=64), torch.randint(200, (2, 5))
    given = ids, torch.ones_like(ids), torch.randn(2, 3, 64)
    torch.testing.assert_close(decoder.train()(*given).logits, decoder.eval()(*given).logits)


def test_targets_of_another_family_are_named(tmp_path: Path) -> None:
    folder = save_causal(tmp_path, "gpt2")
    with pytest.raises(ConfigError, match=r"is called q_proj; choose among c_attn, c_fc, c_proj, or all-linear"):
        build(folder, max_len=64, use_lora=True)
    adapted = build(folder, max_len=64, use_lora=True, lora=LoraConfig(target_modules="c_attn"))
    names = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(names) == 2 * 2
    assert all("c_attn" in name for name in names)
