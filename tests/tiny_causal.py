"""Small causal language models of several families with random weights, saved as the hub would hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from tiny_qwen import HIDDEN, SIZES, SPECIALS, VOCAB, chat_tokenizer

_OLD: dict[str, Any] = {"n_embd": HIDDEN, "n_layer": 2, "n_head": 4}
FAMILIES: dict[str, Any] = {
    "llama": lambda **c: transformers.LlamaConfig(**SIZES, **c),
    "gpt2": lambda **c: transformers.GPT2Config(**_OLD, n_positions=128, **c),
    "gpt_neox": lambda **c: transformers.GPTNeoXConfig(
        **{name: size for name, size in SIZES.items() if name != "num_key_value_heads"}, **c
    ),
    "gemma2": lambda **c: transformers.Gemma2Config(**SIZES, head_dim=16, sliding_window=8, **c),
    "gemma3": lambda **c: transformers.Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=8, **c),
    "qwen3": lambda **c: transformers.Qwen3Config(**SIZES, head_dim=16, **c),
    "opt": lambda **c: transformers.OPTConfig(
        hidden_size=HIDDEN, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32, **c
    ),
    "mixtral": lambda **c: transformers.MixtralConfig(**SIZES, num_local_experts=2, **c),
    "bloom": lambda **c: transformers.BloomConfig(hidden_size=HIDDEN, n_layer=2, n_head=4, **c),
}
"""Name of a family -> its configuration, from what all of them share. The windows of Gemma are shorter than a text."""


def save_causal(folder: Path, family: str, *, template: str | None = None, scale: float = 0.2, **sizes: Any) -> Path:
    """Write a model whose weights are far from their start, and its tokenizer.

    Args:
        folder: where to.
        family: one of `FAMILIES`.
        template: the tokenizer's chat template; None for one without.
        scale: standard deviation of the weights.
        sizes: further entries of the model's config.
    """
    tokenizer = plain_tokenizer(template)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family](vocab_size=VOCAB, **ids, **sizes))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        is_gain = any(word in name for word in ("norm", "ln_")) and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=float(is_gain), std=scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plain_tokenizer(template: str | None = None) -> Any:
    """One token per byte, an end token, and no padding token."""
    tokenizer = chat_tokenizer()
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.chat_template = SPECIALS[0], None, template
    return tokenizer
