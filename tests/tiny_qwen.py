"""Small Qwen models with random weights and a chat tokenizer of bytes, saved as the hub would hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import transformers

HIDDEN = 64
SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
"""Widths are multiples of 64, the block that bitsandbytes quantises."""
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCAB = 264
"""Rows of the embedding table: 256 bytes, three special tokens and some that are never used, as Qwen has them."""
CHAT = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if THINKS and enable_thinking is defined and not enable_thinking %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)
"""Turns framed as Qwen frames them; where `THINKS`, an answer without thinking opens with an empty thought (Qwen3)."""
SYSTEM = (
    "{%- if messages[0].role != 'system' %}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif %}"
)
"""Qwen2.5 opens with a system turn of its own where none is given."""


def save_qwen(
    folder: Path, kind: Literal["qwen2", "qwen3"] = "qwen2", *, tied: bool = True, scale: float = 0.2, **sizes: Any
) -> Path:
    """Write a model whose weights are far from their start, its tokenizer, and generation settings that would be felt.

    Args:
        folder: where to.
        kind: Qwen2.5 or Qwen3.
        tied: whether the LM head is the embedding table.
        scale: standard deviation of the weights.
        sizes: entries of the model's config other than `SIZES`.
    """
    tokenizer = chat_tokenizer(kind)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    settings = {**SIZES, "vocab_size": VOCAB, "tie_word_embeddings": tied, **ids, **sizes}
    if kind == "qwen2":
        model: Any = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**settings))
    else:
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**{"head_dim": 16, **settings}))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=scale)
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.5, **ids
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat_tokenizer(kind: Literal["qwen2", "qwen3"] = "qwen2") -> Any:
    """One token per byte, and Qwen's way to frame a chat."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIALS])
    template = CHAT.replace("THINKS", "true" if kind == "qwen3" else "false")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=template if kind == "qwen3" else SYSTEM + template,
    )
