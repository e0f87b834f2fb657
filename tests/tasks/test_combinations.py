"""A walk over the switches: every pair of their values meets in some model, which builds, and trains all it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from impresa.config import ExperimentConfig
from impresa.config.losses import FUSED_PAIR
from impresa.config.validate import experiment_from_tree
from impresa.errors import ConfigError
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.build import build_alignment
from impresa.tasks.answering.batch import DialogueBatch
from impresa.tasks.answering.build import build_vlm
from tiny_qwen import save_qwen
from tiny_vlm import rough

Allowed = Callable[[dict[str, str]], bool]
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
    "vision_encoder.stem": ("patch", "conv"),
    "vision_encoder.patch_dropout": ("0", "0.5"),
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
    "optimization.chunk_size": ("null", "3"),
    "fusion.strategy": ("concat", "cross_attention", "gated"),
}
RULED = ("audio_encoder", "losses.pairs", "fusion.strategy")
"""Switches whose values exclude each other's."""
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
        "decoder.prefix=cls_patches",
        "decoder.prefix=cls_patches vision_encoder.memory.enabled=true",
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
    "projector": tuple(f"fusion.projector={kind}" for kind in ("linear", "mlp")),
}
"""Each value is a list of overrides."""
HEARS = ALIGNMENT["audio_encoder"][1:]
RECURSIVE = tuple(words for words in VLM["decoder"] if "trm" in words and "recursive=false" not in words)
NEEDS: dict[str, dict[str, Sequence[str]]] = {
    **{name: {"vision_encoder.memory.enabled": ("true",)} for name in ALIGNMENT if ".memory.m" in name},
    "vision_encoder.memory.dim": {"vision_encoder.memory.enabled": ("true",)},
    "losses.sample_single_mrl_dim": {"vision_encoder.use_mrl": ("true",)},
    "losses.row_chunk": {"vision_encoder.use_mrl": ("true",)},
    "vision_encoder.projection": {"vision_encoder.use_perceiver": ("false",)},
    "vision_encoder.use_attention_pooling": {"vision_encoder.use_perceiver": ("false",)},
    "vision_encoder.pooling": {
        "vision_encoder.use_perceiver": ("false",),
        "vision_encoder.use_attention_pooling": ("false",),
    },
    "fusion.strategy": {"losses.pairs": ALIGNMENT["losses.pairs"][2:], "audio_encoder": HEARS},
    "memory": {"prefix": tuple(words for words in VLM["prefix"] if "memory" in words)},
    "projection": {"prefix": VLM["prefix"][:2]},
    "rounds": {"decoder": RECURSIVE},
    "cycles": {"decoder": RECURSIVE},
}
"""Which values of other switches a switch does its work with; two switches meet where both are at work, if that can
be."""
Case = dict[str, str]
Pair = tuple[tuple[str, str], tuple[str, str]]


def needs(pair: Pair) -> dict[str, set[str]]:
    """What a case has to have besides, so that both switches of a pair are at work; nothing if they exclude that."""
    wanted: dict[str, set[str]] = {}
    for name, _ in pair:
        for other, values in NEEDS.get(name, {}).items():
            wanted[other] = wanted.get(other, set(values)) & set(values)
    for name, value in pair:
        if name in wanted and value not in wanted.pop(name):
            return {}
    return wanted if all(wanted.values()) else {}


def pairs_of(factors: Mapping[str, Sequence[str]]) -> set[Pair]:
    return {
        tuple(sorted(((a, x), (b, y))))  # type: ignore[misc]
        for a, b in combinations(factors, 2)
        for x in factors[a]
        for y in factors[b]
    }


def completions(factors: Mapping[str, Sequence[str]], pair: Pair, allowed: Allowed) -> Iterator[Case]:
    """Beginnings of a case in which a pair meets, with what it needs and what the rules ask for beside it."""
    choices: dict[str, Sequence[str]] = {name: factors[name] for name in RULED if name in factors}
    choices |= {name: [value for value in factors[name] if value in values] for name, values in needs(pair).items()}
    choices |= {name: [value] for name, value in pair}
    for values in product(*choices.values()):
        case = dict(zip(choices, values, strict=True))
        if allowed(case):
            yield case


def pairwise(factors: Mapping[str, Sequence[str]], allowed: Allowed) -> tuple[list[Case], set[Pair]]:
    """Few cases in which every pair of values meets, and the pairs that no case may have. Each case starts from a pair
    that is missing, and takes the values that bring the most new pairs."""
    missing, impossible, cases = pairs_of(factors), set(), []
    wanted = {pair: needs(pair) for pair in missing}

    def met(case: Case) -> set[Pair]:
        return {
            pair
            for pair in combinations(sorted(case.items()), 2)
            if pair in missing and all(case.get(name) in values for name, values in wanted[pair].items())
        }

    for pair in sorted(missing):
        if pair not in missing:
            continue
        case = max(completions(factors, pair, allowed), key=lambda case: len(met(case)), default=None)
        if case is None:
            missing.remove(pair)
            impossible.add(pair)
            continue
        for name, values in factors.items():
            if name not in case:
                case[name] = max(values, key=lambda value: len(met({**case, name: value})))
        assert allowed(case), case
        assert pair in met(case)
        missing -= met(case)
        cases.append(case)
    assert not missing
    return cases, impossible


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
    """Trainable parameters that the loss does not reach, or with a gradient that is zero or not finite."""
    loss.backward()
    return [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not torch.isfinite(p.grad).all() or not p.grad.any())
    ]


def refused() -> set[Pair]:
    """What the rules of the config exclude: sounds in a pair without a tower that hears, such a tower without a pair
    that has sounds, and a fusion of nothing."""
    deaf, hears = (("audio_encoder", value) for value in ALIGNMENT["audio_encoder"])
    every, alone, fused = (("losses.pairs", value) for value in ALIGNMENT["losses.pairs"])
    fusions = [("fusion.strategy", value) for value in ALIGNMENT["fusion.strategy"][1:]]
    without = {pair for fusion in fusions for pair in ((deaf, fusion), (fusion, every), (fusion, alone))}
    return {(deaf, fused), (hears, alone), *without}


def test_every_pair_of_alignment_switches_trains() -> None:
    cases, impossible = pairwise(ALIGNMENT, lambda case: is_valid_alignment(tuple(sorted(case.items()))))
    assert impossible == refused()
    assert len(cases) >= 25
    for case in cases:
        torch.manual_seed(0)
        config = alignment(case)
        model = build_alignment(config, VOCAB, END)
        assert untrained(model, model(batch(config)).loss) == [], case


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen(tmp_path_factory.mktemp("qwen") / "model")


def test_every_pair_of_vision_language_switches_trains(qwen: Path) -> None:
    cases, impossible = pairwise(VLM, lambda case: True)
    assert not impossible
    assert len(cases) >= 54
    for case in cases:
        torch.manual_seed(0)
        config = vlm(case, qwen)
        model = rough(build_vlm(config, VOCAB))  # adapters and the recursion begin as nothing
        missing = untrained(model, model(dialogues(config)).loss)
        if config.audio_encoder is None:  # a single modality takes the whole of a gate
            missing = [name for name in missing if not name.startswith("fusion.gate.")]
        assert missing == [], case
