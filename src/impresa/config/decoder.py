"""Config of the language model behind the encoders, and of the text that it writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from impresa.config.types import (
    CountOrZero,
    Depth,
    Flag,
    Fraction,
    Images,
    Multiple,
    Name,
    Names,
    NonNegative,
    Penalty,
    Positive,
    Rate,
    Section,
    Text,
    Tokens,
    Vocabulary,
    Width,
)

PrefixTokens = Literal["tokens", "cls_patches", "perceiver", "memory"]
PRETRAINED = ("qwen", "causal_lm")
"""Values of `decoder.type` for a language model that is read by name."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Section):
    """Low-rank adapters (LoRA, Hu et al. 2021) in the language model, made by peft."""

    r: Width = 16
    """Rank."""
    alpha: Positive = 32.0
    """Scale; the adapter's output is multiplied by alpha / r."""
    dropout: Rate = 0.2
    """Dropout on the adapter's input."""
    target_modules: Names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers that get an adapter, by name; `all-linear` is all of them but the LM head."""


@dataclass(frozen=True, kw_only=True)
class TowerLoraConfig(LoraConfig):
    """Low-rank adapters (LoRA, Hu et al. 2021) in the blocks of a pretrained tower, made by peft: the tower is frozen,
    its adapters and what is new behind it are trained, with `optimization.lr`."""

    target_modules: Names = "all-linear"
    """Linear layers of the blocks that get an adapter, by name; `all-linear` is all of them."""


@dataclass(frozen=True, kw_only=True)
class RecursionConfig(Section):
    """Latent recursion after "Less is More: Recursive Reasoning with Tiny Networks" (Jolicoeur-Martineau 2025)."""

    recursive: Flag = True
    """false: the same blocks run once, as a plain stack: the control with equal parameters, without K, n and N."""
    num_cycles: Depth = 2
    """K: cycles of reasoning updates followed by one answer update; all but the last run without gradient."""
    num_steps: Depth = 2
    """n: updates of the reasoning state Z in a cycle."""
    num_rounds: Depth = 1
    """N: rounds of deep supervision; states are detached between rounds and the losses averaged."""
    num_layers: Depth = 2
    """Transformer blocks of the recursed network."""
    dropout: Rate = 0.2
    """Dropout inside the recursed network."""


@dataclass(frozen=True, kw_only=True)
class GenerationConfig(Section):
    """Defaults of text generation, stored in the run."""

    max_new_tokens: Tokens = 64
    """Longest answer in tokens."""
    num_beams: Depth = 1
    """Number of beams; 1: no beam search."""
    temperature: NonNegative = 0.0
    """Sampling temperature, at least 0.001; 0 is greedy."""
    top_p: Fraction = 1.0
    """Sample from the smallest set of tokens that has this probability; needs a temperature."""
    top_k: CountOrZero = 0
    """Sample from this many of the likeliest tokens, 0: from all; needs a temperature."""
    repetition_penalty: Penalty = 1.0
    """Above 1 the answer's own tokens become less likely to be repeated (Keskar et al. 2019); 1: no penalty. The
    question does not count, here and below."""
    no_repeat_ngram_size: CountOrZero = 0
    """No n-gram of this length occurs twice in an answer; 0 allows all."""
    stop: Names = ()
    """Texts that end the answer, which is cut before the first of them. A `trm` writes in lower case."""
    seed: CountOrZero | None = None
    """Seed of sampling; needs a temperature. Each question of a call draws from its own stream, by seed and position,
    so that the batch changes nothing (except with beams). null: torch's global generator is used."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Section):
    """The language model behind the encoder."""

    type: Literal["qwen", "causal_lm", "trm"] = "qwen"
    """`qwen`: a pretrained Qwen causal model; `causal_lm`: any pretrained decoder-only model in transformers (Llama,
    Gemma, GPT-2, ...); `trm`: a Tiny Recursive Model trained from scratch."""
    model: Name = "Qwen/Qwen2.5-3B-Instruct"
    """qwen, causal_lm: Hugging Face id or local path."""
    load_in_4bit: Flag = False
    """qwen, causal_lm: load the language model in NF4 with double quantisation (bitsandbytes)."""
    load_in_8bit: Flag = False
    """qwen, causal_lm: load it in eight bits (LLM.int8, Dettmers et al. 2022, by bitsandbytes) instead."""
    use_lora: Flag = False
    """qwen, causal_lm: freeze the language model and train low-rank adapters."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """qwen, causal_lm: the adapters' settings."""
    freeze: Flag = False
    """qwen, causal_lm: keep the language model as it is and train the prefix side only."""
    use_trm_recursion: Flag = False
    """qwen, causal_lm: latent recursion on the last hidden states, before the LM head."""
    recursion: RecursionConfig = field(default_factory=RecursionConfig)
    """The recursion of `trm`, and of a pretrained model with `use_trm_recursion`."""
    dim: Width = 256
    """trm: width."""
    num_heads: Width = 8
    """trm: attention heads."""
    mlp_ratio: Multiple = 4.0
    """trm: hidden width of the gated MLP as a multiple of `dim`."""
    vocab_size: Vocabulary = 8192
    """trm: upper bound of the vocabulary of the tokenizer trained on the run's texts."""
    system_prompt: Name | None = None
    """Text that tells the model what to do, before the first question of every dialogue: the system turn where the chat
    template has one. It is stored in the run and counts for `max_len`."""
    max_len: Tokens = 256
    """Longest text (question and answer) in tokens; the question is cut, never the answer."""
    prefix: PrefixTokens = "tokens"
    """Which of the encoder's tokens become the prefix: the patches, the class token followed by the patches
    (`cls_patches`), the Perceiver's latents or the memory tokens."""
    prefix_layer: Literal["auto", "last", "penultimate"] = "auto"
    """Block of the image tower whose outputs are used. `auto`: penultimate for a tower that is completely frozen and
    pools by CLS (nothing has trained what its last block does to the other tokens), if it has several blocks, else
    last."""
    tiles: Images = 1
    """Maximum number of square tiles that an image is cut into, by the grid that fits it best (`anyres` of LLaVA-NeXT,
    Liu et al. 2024): the image tower sees the whole image, downsized, and then each tile. 1: the whole image only, as
    for images that are no larger than `dataset.image_size`."""
    init_from: Text | None = None
    """A finished vision-language run of Impresa to continue from, as a second stage."""
    activation_checkpointing: Flag = False
    """Recompute activations in the backward pass."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)

    @property
    def is_pretrained(self) -> bool:
        """True for a language model that is read by name, false for one from scratch."""
        return self.type in PRETRAINED

    @property
    def is_quantized(self) -> bool:
        """True for a language model in four or eight bits, which is frozen."""
        return self.load_in_4bit or self.load_in_8bit
