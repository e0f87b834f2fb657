"""A walk over the switches: every pair of their values meets in some model, which builds, and trains all it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from impresa.config import ExperimentConfig
from impresa.config.checks import FUSED_PAIR
from impresa.config.validate import experiment_from_tree
from impresa.data.batch import Batch, DialogueBatch
from impresa.errors import ConfigError
from impresa.models.build import build_alignment, build_vlm
from tiny_qwen import save_qwen

B, S, VOCAB, END = 6, 16, 300, 299
SMALL = (
    *("dataset.image_size=16", "vision_encoder.patch_size=4", "vision_encoder.dim=16", "vision_encoder.depth=2"),
    *("vision_encoder.num_heads=2", "vision_encoder.perceiver_num_heads=2", "vision_encoder.perceiver_num_latents=3"),
    *("vision_encoder.perceiver_num_layers=1", "vision_encoder.memory.num_memory_tokens=3"),
)
ALIGNMENT: dict[str, tuple[str, ...]] = {
    "vision_encoder.memory.enabled": ("true", "false"),
    "vision_encoder.memory.memory_init": ("learnable", "zeros", "orthogonal", "features"),
    "vision_encoder.memory.memory_update": ("attention", "gated", "static"),
    "vision_encoder.memory.memory_position": ("prepend", "append"),
    "vision_encoder.memory.dim": ("16", "12"),
    "vision_encoder.projection": ("mlp", "linear", "none"),
    "vision_encoder.use_perceiver": ("false", "true"),
    "vision_encoder.use_attention_pooling": ("false", "true"),
    "vision_encoder.pooling": ("auto", "cls", "mean"),
    "vision_encoder.use_mrl": ("false", "true"),
    "vision_encoder.activation": ("gelu", "quick_gelu"),
    "vision_encoder.pre_norm": ("false", "true"),
    "vision_encoder.patch_bias": ("true", "false"),
    "vision_encoder.activation_checkpointing": ("false", "true"),
    "vision_encoder.freeze": ("null", "true"),
    "text_encoder.pooling": ("auto", "mean", "eot"),
    "text_encoder.projection": ("mlp", "none"),
    "audio_encoder": (
        "null",
        '{"backbone":"spectrogram","dim":16,"depth":1,"num_heads":2,"patch_size":16,"embed_dim":16}',
    ),
    "losses.type": ("clip", "siglip"),
    "losses.pairs": ("null", "[image-text]", f"[image-text,image-audio,text-audio,{FUSED_PAIR}]"),
    "losses.duplicates": ("ignore", "positive"),
    "losses.learn_temperature": ("true", "false"),
    "losses.sample_single_mrl_dim": ("false", "true"),
    "losses.row_chunk": ("null", "2"),
    "fusion.strategy": ("concat", "cross_attention", "gated"),
}
TRM = "decoder.type=trm decoder.dim=16 decoder.num_heads=2 decoder.vocab_size=300"
QWEN = "decoder.type=qwen decoder.model=QWEN"
VLM: dict[str, tuple[str, ...]] = {
    "decoder": (
        TRM,
        f"{TRM} decoder.recursion.recursive=false",
        QWEN,
        f"{QWEN} decoder.freeze=true",
        f"{QWEN} decoder.use_lora=true",
        f"{QWEN} decoder.load_in_4bit=true",
        f"{QWEN} decoder.use_lora=true decoder.load_in_4bit=true",
        f"{QWEN} decoder.use_trm_recursion=true",
        f"{QWEN} decoder.use_trm_recursion=true decoder.use_lora=true decoder.load_in_4bit=true",
    ),
    "prefix": (
        "decoder.prefix=tokens",
        "decoder.prefix=tokens vision_encoder.memory.enabled=true",
        "decoder.prefix=tokens vision_encoder.use_perceiver=true",
        "decoder.prefix=perceiver vision_encoder.use_perceiver=true",
        "decoder.prefix=memory vision_encoder.memory.enabled=true",
        "decoder.prefix=memory vision_encoder.memory.enabled=true vision_encoder.use_perceiver=true",
    ),
    "layer": tuple(f"decoder.prefix_layer={layer}" for layer in ("auto", "last", "penultimate")),
    "rounds": ("decoder.recursion.num_rounds=1", "decoder.recursion.num_rounds=2"),
    "cycles": ("decoder.recursion.num_cycles=1", "decoder.recursion.num_cycles=2"),
    "recomputes": ("decoder.activation_checkpointing=false", "decoder.activation_checkpointing=true"),
    "memory": tuple(f"vision_encoder.memory.memory_update={kind}" for kind in ("attention", "gated", "static")),
    "projection": tuple(f"vision_encoder.projection={kind}" for kind in ("mlp", "linear", "none")),
    "pooling": ("vision_encoder.use_attention_pooling=false", "vision_encoder.use_attention_pooling=true"),
    "freeze": ("vision_encoder.freeze=null", "vision_encoder.freeze=true"),
    "audio": tuple(f"audio_encoder={tower}" for tower in ALIGNMENT["audio_encoder"]),
    "fusion": tuple(f"fusion.strategy={kind}" for kind in ("concat", "cross_attention", "gated")),
}
"""Each value is a list of overrides."""
Case = dict[str, str]


def pairwise(factors: Mapping[str, Sequence[str]], allowed: Any) -> list[Case]:
    """Few cases in which every allowed pair of values meets: each starts from a pair that is missing, and takes the
    values that bring the most new pairs."""

    def pairs_of(case: Case) -> set[tuple[tuple[str, str], ...]]:
        return set(combinations(sorted(case.items()), 2))

    missing = {
        tuple(sorted(((a, x), (b, y)))) for a, b in combinations(factors, 2) for x in factors[a] for y in factors[b]
    }
    cases = []
    for pair in sorted(missing):
        if pair not in missing or not allowed(dict(pair)):
            continue
        case = dict(pair)
        for name, values in factors.items():
            if name not in case:
                fitting = [value for value in values if allowed({**case, name: value})]
                case[name] = max(fitting, key=lambda value: len(pairs_of({**case, name: value}) & missing))
        missing -= pairs_of(case)
        cases.append(case)
    return cases


def experiment(base: Sequence[str], case: Case) -> ExperimentConfig:
    """A validated experiment, without the cost of composing one by Hydra."""
    tree: dict[str, Any] = {}
    for key, text in [*(item.split("=", 1) for item in base), *case.items()]:
        *parents, name = key.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = yaml.safe_load(text)
    return experiment_from_tree(tree)


def alignment(case: Case) -> ExperimentConfig:
    return experiment([*SMALL, *TOWERS], case)


TOWERS = (
    *("vision_encoder.embed_dim=16", "vision_encoder.mrl_dimensions=[8,4]"),
    *("text_encoder.embed_dim=16", "text_encoder.dim=16", "text_encoder.depth=1", "text_encoder.num_heads=2"),
)


@cache
def is_valid_alignment(items: tuple[tuple[str, str], ...]) -> bool:
    try:
        alignment(dict(items))
    except ConfigError:
        return False
    return True


def vlm(case: Case, folder: Path) -> ExperimentConfig:
    overrides = [word.replace("QWEN", str(folder)) for words in case.values() for word in words.split()]
    return experiment([*SMALL, *overrides], {})


def images() -> torch.Tensor:
    return torch.randn(B, 3, S, S)


def batch(config: ExperimentConfig) -> Batch:
    torch.manual_seed(1)
    ids = torch.randint(3, END, (B, 6))
    ids[:, -1] = END
    captions = ["the same", "the same", *(f"caption {i}" for i in range(2, B))]
    hears = config.audio_encoder is not None
    return Batch(
        [str(i) for i in range(B)],
        image=images(),
        input_ids=ids,
        attention_mask=torch.ones(B, 6, dtype=torch.bool),
        captions=captions,
        audio=torch.randn(B, 32, 128) if hears else None,
        audio_mask=torch.arange(32) < torch.tensor([32, 32, 20, 9, 32, 1])[:, None] if hears else None,
    )


def dialogues(config: ExperimentConfig) -> DialogueBatch:
    torch.manual_seed(1)
    ids, mask = torch.randint(3, 250, (B + 2, 7)), torch.arange(7) < torch.randint(4, 8, (B + 2, 1))
    hears = config.audio_encoder is not None
    return DialogueBatch(
        [str(i) for i in range(B)],
        image=images(),
        audio=torch.randn(B, 32, 128) if hears else None,
        input_ids=ids,
        attention_mask=mask,
        labels=ids.masked_fill(~mask | (torch.arange(7) < 2), -100),
        image_of_row=torch.tensor([0, 0, 0, 1, 2, 3, 4, 5]),
        num_supervised=int((mask & (torch.arange(7) >= 2)).sum()),
    )


def untrained(model: nn.Module, loss: torch.Tensor) -> list[str]:
    """Trainable parameters that the loss does not reach, or with numbers that are not finite."""
    loss.backward()
    return [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not torch.isfinite(p.grad).all())
    ]


def test_every_pair_of_alignment_switches_trains() -> None:
    cases = pairwise(ALIGNMENT, lambda case: is_valid_alignment(tuple(sorted(case.items()))))
    assert len(cases) >= 12
    for case in cases:
        torch.manual_seed(0)
        config = alignment(case)
        model = build_alignment(config, VOCAB, END)
        assert untrained(model, model(batch(config)).loss) == [], case


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen(tmp_path_factory.mktemp("qwen") / "model")


def test_every_pair_of_vision_language_switches_trains(qwen: Path) -> None:
    cases = pairwise(VLM, lambda case: True)
    assert len(cases) >= 54
    for case in cases:
        torch.manual_seed(0)
        config = vlm(case, qwen)
        model = build_vlm(config, VOCAB)
        assert untrained(model, model(dialogues(config)).loss) == [], case
