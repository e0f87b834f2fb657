"""A tokenizer over bytes with the frame of Qwen's chat format, in the manner of its versions 2.5 and 3."""

from __future__ import annotations

from typing import Any, Literal

import transformers

Version = Literal["2.5", "3"]

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SYSTEM = "You answer briefly."

# 2.5: a system line of its own where the conversation brings none; the same for all turns.
_QWEN_2_5 = """
{%- if messages[0].role != "system" -%}
{{ "<|im_start|>system\n" + default_system + "<|im_end|>\n" }}
{%- endif -%}
{%- for message in messages -%}
{{ "<|im_start|>" + message.role + "\n" + message.content + "<|im_end|>\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ "<|im_start|>assistant\n" }}
{%- endif -%}
""".replace("default_system", repr(SYSTEM)).strip()

# 3: no system line; thoughts are dropped from what was said before, and shown empty where thinking is off.
_QWEN_3 = """
{%- for message in messages -%}
{%- set said = message.content -%}
{%- if message.role == "assistant" and "</think>" in said -%}
{%- set said = said.split("</think>")[-1].lstrip("\n") -%}
{%- endif -%}
{%- if message.role == "assistant" and loop.last -%}
{%- set said = "<think>\n\n</think>\n\n" + said -%}
{%- endif -%}
{{ "<|im_start|>" + message.role + "\n" + said + "<|im_end|>\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ "<|im_start|>assistant\n" }}
{%- if enable_thinking is defined and not enable_thinking -%}
{{ "<think>\n\n</think>\n\n" }}
{%- endif -%}
{%- endif -%}
""".strip()


def tokenizer(version: Version = "2.5", *, num_merges: int = 0) -> Any:
    """transformers' tokenizer: the 256 bytes and some merges, then the special tokens; nothing is put around texts."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + num_merges, initial_alphabet=alphabet, show_progress=False)
    plain.train_from_iterator(["what is there? a red circle is there, and a blue square"] * 9, trainer)
    plain.add_special_tokens(list(SPECIAL))
    if version == "3":
        plain.add_tokens([AddedToken(word, normalized=False) for word in ("<think>", "</think>")])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=_QWEN_2_5 if version == "2.5" else _QWEN_3,
    )
