"""Make a small Qwen2 locally: `python examples/small_qwen.py [DIR] [--seed N]`.

Nothing is downloaded: the weights are random, the byte-level tokenizer is trained on the questions and answers of the
embedded scenes, and its chat template frames turns as Qwen's own models do (ChatML). DIR (default: models/small_qwen)
is then a model directory like any written by `save_pretrained`:

    impresa train shapes --output-dir runs/shapes
    impresa train shapes_vqa_qwen

A random language model knows nothing, so it has to be trained whole, as the profile does. To use four bits, adapters or
recursion, continue from a run of it that has been trained, or name a pretrained Qwen in `decoder.model`.
Its widths are multiples of 64, the block size of four-bit quantisation in bitsandbytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from impresa.config.dataset import DatasetConfig
from impresa.data.dialogue import texts_of
from impresa.data.sources import Reading, open_source

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
VOCABULARY = 512
NUM_SCENES = 1024
"""Scenes whose questions and answers the tokenizer is trained on."""


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen's three special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Roles are words of the frame.
    tokenizer.train_from_iterator([*texts, *["user\n", "assistant\n", "system\n"] * 2], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=TURN_END, pad_token=END_OF_TEXT, chat_template=CHATML
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Four layers of width 128, with random weights from torch's seed."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def write(directory: Path, seed: int) -> None:
    """Write tokenizer and model."""
    source = open_source(DatasetConfig(), "train", Reading(dialogues=True))
    dialogues = (dialogue for index in range(NUM_SCENES) for dialogue in source[index].dialogues)
    tokenizer = train_tokenizer(texts_of(dialogues))
    torch.manual_seed(seed)
    model = build_model(tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    print(f"{directory}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a small Qwen2 with random weights.")
    parser.add_argument("directory", metavar="DIR", type=Path, nargs="?", default=Path("models/small_qwen"))
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="default: 0")
    arguments = parser.parse_args()
    write(arguments.directory, arguments.seed)
