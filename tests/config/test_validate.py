"""Refusals: every fault is told, all in one go, one line each, in the names that the user wrote."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

import impresa.config
from impresa.config.dataset import DatasetConfig
from impresa.config.describe import describe
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig, TrainerConfig
from impresa.config.memory_vlm import MemoryVLMConfig, ModelConfig
from impresa.config.optimization import OptimizationConfig
from impresa.config.tree import known_keys, locate, merge, nested, to_tree
from impresa.config.validate import experiment_from_tree, validate
from impresa.errors import ConfigError


def lines_of(tree: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        experiment_from_tree(tree)
    assert str(caught.value) == "\n".join(caught.value.lines)
    return list(caught.value.lines)


def told(tree: Any) -> tuple[str, ...]:
    """The lines of a refusal; none if there is none."""
    try:
        experiment_from_tree(tree)
    except ConfigError as error:
        return error.lines
    return ()


def only_line(*settings: tuple[str, Any]) -> str:
    tree: dict[str, Any] = {}
    for key, value in settings:
        tree = merge(tree, nested(key, value))
    (line,) = lines_of(tree)
    return line


SINGLE = [
    ("optimization.lrr", 1, "optimization.lrr: unknown key; did you mean optimization.lr?"),
    ("lerning_rate", 1, "lerning_rate: unknown key; did you mean "),
    ("dataset.zzz", 1, "dataset.zzz: unknown key; known here are source, train_path"),
    (
        "dataset.streaming",
        True,
        "dataset.streaming: reads data sets of the hub, and no data path names one",
    ),
    ("decoders", None, "decoders: unknown key; did you mean decoder?"),
    ("trainer.Epochs", 1, "trainer.Epochs: unknown key; did you mean trainer.epochs?"),
    ("trainer.save-top-k", 1, "trainer.save-top-k: unknown key; did you mean trainer.checkpoint.save_top_k?"),
    ("optimization.lr", "fast", "optimization.lr: got 'fast' (text); it must be a number above 0"),
    ("optimization.lr", True, "optimization.lr: got true; it must be a number above 0"),
    ("optimization.lr", float("nan"), "optimization.lr: got nan; it must be a number above 0"),
    ("optimization.lr", float("inf"), "optimization.lr: got inf; it must be a number above 0"),
    ("optimization.lr", 0, "optimization.lr: got 0; it must be a number above 0"),
    ("optimization.lr", None, "optimization.lr: got null; it must be a number above 0"),
    ("trainer.epochs", 1.5, "trainer.epochs: got 1.5; it must be a whole number at least 1"),
    ("trainer.epochs", "3", "trainer.epochs: got '3' (text); it must be a whole number at least 1"),
    ("trainer.epochs", False, "trainer.epochs: got false; it must be a whole number at least 1"),
    ("trainer.deterministic", 1, "trainer.deterministic: got 1; it must be true or false"),
    ("name", 5, "name: got 5; it must be text that is not empty, in quotes"),
    ("name", "", "name: got ''"),
    ("labels.tags", "a", "labels.tags: got 'a' (text); it must be a list, each item text that is not empty"),
    ("optimization.betas", [0.9], "optimization.betas: got [0.9]; it must be a list of 2, each a number at least 0"),
    ("optimization.betas", [0.9, 1], "optimization.betas: got [0.9, 1]; it must be a list of 2, each a number"),
    ("optimization.betas", [0.9, 0.8, 0.7], "optimization.betas: got [0.9, 0.8, 0.7]; it must be a list of 2"),
    ("losses.type", "clop", "losses.type: got 'clop'; it must be clip or siglip (did you mean clip?)"),
    ("losses.temperature", 0.005, "losses.temperature: got 0.005; it must be a number at least 0.01 or null"),
    ("losses.max_logit_scale", 101, "losses.max_logit_scale: got 101; it must be a number at least 1 and at most 100"),
    ("losses.max_logit_scale", 0.5, "losses.max_logit_scale: got 0.5; it must be a number at least 1 and at most 100"),
    ("losses.siglip_bias", True, "losses.siglip_bias: got true; it must be auto or a number"),
    ("trainer.devices", 0, "trainer.devices: got 0; it must be auto or a whole number at least 1"),
    ("trainer.strategy", "deepspeed", "trainer.strategy: got 'deepspeed'; it must be auto, ddp or fsdp"),
    ("dataset", 3, "dataset: got 3; it must be a mapping of keys"),
    ("text_encoder", None, "text_encoder: got null; it must be a mapping of keys"),
    ("vision_encoder.memory", [], "vision_encoder.memory: got []; it must be a mapping of keys"),
    ("vision_encoder.drop_rate", 1.0, "vision_encoder.drop_rate: got 1.0; it must be a number at least 0 and below 1"),
    (
        "vision_encoder.patch_dropout",
        0.95,
        "vision_encoder.patch_dropout: got 0.95; it must be a number at least 0 and b",
    ),
    ("vision_encoder.memory.mem_alpha", 1.5, "vision_encoder.memory.mem_alpha: got 1.5; it must be a number at least"),
    (
        "decoder.load_in_4bit",
        True,
        "decoder.type: this experiment has no decoder; set it to qwen, causal_lm or trm to add one",
    ),
]


@pytest.mark.parametrize(("key", "value", "line"), SINGLE, ids=[f"{key}={value}" for key, value, _ in SINGLE])
def test_a_single_field(key: str, value: Any, line: str) -> None:
    assert only_line((key, value)).startswith(line)


BAG = ("text_encoder.backbone", "bag")
CROSSING: list[tuple[list[tuple[str, Any]], str]] = [
    ([("vision_encoder.num_heads", 7)], "vision_encoder.num_heads: 7 heads do not divide vision_encoder.dim, 512; 4"),
    ([("text_encoder.num_heads", 1000)], "text_encoder.num_heads: 1000 heads do not divide text_encoder.dim, 512; 512"),
    ([("audio_encoder.num_heads", 7)], "audio_encoder.num_heads: 7 heads do not divide audio_encoder.dim, 512; 4"),
    (
        [("vision_encoder.use_perceiver", True), ("vision_encoder.perceiver_num_heads", 3)],
        "vision_encoder.perceiver_num_heads: 3 heads do not divide vision_encoder.dim, 512; 2 would",
    ),
    ([("vision_encoder.mlp_ratio", 1e-6)], "vision_encoder.mlp_ratio: 1e-06 leaves the MLPs no hidden width"),
    ([("dataset.image_size", 225)], "dataset.image_size: 225 is no multiple of vision_encoder.patch_size, 16; 224"),
    ([("dataset.image_size", 5)], "dataset.image_size: 5 is no multiple of vision_encoder.patch_size, 16; 16 would"),
    ([("text_encoder.embed_dim", 256)], "text_encoder.embed_dim: 256 is not vision_encoder.embed_dim, 512; all"),
    ([("audio_encoder.embed_dim", 256)], "audio_encoder.embed_dim: 256 is not vision_encoder.embed_dim, 512; all"),
    (
        [("vision_encoder.use_mrl", True), ("vision_encoder.mrl_dimensions", [64, 128])],
        "vision_encoder.mrl_dimensions: [64, 128] does not descend; write [128, 64]",
    ),
    (
        [("vision_encoder.use_mrl", True), ("vision_encoder.mrl_dimensions", [64, 64])],
        "vision_encoder.mrl_dimensions: [64, 64] does not descend; write [64]",
    ),
    (
        [("vision_encoder.use_mrl", True), ("vision_encoder.mrl_dimensions", [1024, 64])],
        "vision_encoder.mrl_dimensions: 1024 is above vision_encoder.embed_dim, 512; leave it out",
    ),
    (
        [("vision_encoder.use_mrl", True), ("vision_encoder.mrl_dimensions", [])],
        "vision_encoder.mrl_dimensions: is empty; name at least one dimension, or turn vision_encoder.use_mrl off",
    ),
    ([("vision_encoder.max_len", 5)], "vision_encoder.max_len: means nothing for image; leave it out"),
    ([("vision_encoder.vocab_size", 500)], "vision_encoder.vocab_size: means nothing for image"),
    (
        [("vision_encoder.stem", "conv"), ("vision_encoder.patch_size", 14)],
        "vision_encoder.patch_size: 14 cannot be reached by halving, as vision_encoder.stem conv does; 16 can",
    ),
    (
        [("vision_encoder.stem", "conv"), ("vision_encoder.patch_size", 1), ("dataset.image_size", 16)],
        "vision_encoder.patch_size: 1 cannot be reached by halving, as vision_encoder.stem conv does; 2 can",
    ),
    (
        [("vision_encoder.backbone", "convnet"), ("vision_encoder.patch_size", 28)],
        "vision_encoder.patch_size: 28 cannot be reached by halving, as a convnet does; 32 can",
    ),
    (
        [("vision_encoder.backbone", "convnet"), ("vision_encoder.memory.enabled", True)],
        "vision_encoder.memory.enabled: memory tokens need vision_encoder.backbone vit, not convnet; turn it off",
    ),
    (
        [("vision_encoder.backbone", "convnet"), ("vision_encoder.pooling", "cls")],
        "vision_encoder.pooling: cls is not for image by convnet; use auto or mean",
    ),
    *(
        (
            [("vision_encoder.backbone", "convnet"), (f"vision_encoder.{key}", value)],
            f"vision_encoder.{key}: is not for convnet, which is no transformer; leave it out",
        )
        for key, value in {
            "num_heads": 4,
            "mlp_ratio": 2.0,
            "activation": "quick_gelu",
            "pre_norm": True,
            "patch_bias": False,
            "stem": "conv",
            "attn_drop_rate": 0.1,
            "patch_dropout": 0.5,
        }.items()
    ),
    ([("text_encoder.backbone", "convnet")], "text_encoder.backbone: convnet is not for text; use transformer, bag"),
    (
        [("dataset.augmentation", "none"), ("dataset.augmentation_options.hue", 0.1)],
        "dataset.augmentation_options: changes a preset, and dataset.augmentation none has no random views; choose",
    ),
    (
        [("dataset.augmentation", "strong"), ("dataset.augmentation_options.ratio", [0.5, 2.0])],
        "dataset.augmentation_options.ratio: is of random crops, which strong makes none of without",
    ),
    (
        [("dataset.augmentation_options.scale", [1.0, 0.5])],
        "dataset.augmentation_options.scale: [1.0, 0.5] begins with the larger one; write [0.5, 1.0]",
    ),
    (
        [
            ("audio_encoder.embed_dim", 512),
            ("losses.pairs", ["image-audio", "text-audio"]),
            ("dataset.negative_column", "wrong"),
        ],
        "dataset.negative_column: holds captions to tell images from, and losses.pairs has no image-text; add that",
    ),
    ([("vision_encoder.prompts.query", "q: ")], "vision_encoder.prompts: means nothing for image; leave it out"),
    ([BAG, ("text_encoder.pooling", "eot")], "text_encoder.pooling: eot is not for text by bag; use auto or mean"),
    *(
        (
            [BAG, (f"text_encoder.{key}", value)],
            f"text_encoder.{key}: is not for bag, which is no transformer; leave it out",
        )
        for key, value in {
            "depth": 2,
            "num_heads": 4,
            "mlp_ratio": 2.0,
            "activation": "quick_gelu",
            "attn_drop_rate": 0.1,
            "activation_checkpointing": True,
        }.items()
    ),
    (
        [("vision_encoder.backbone", "openai/clip"), ("vision_encoder.stem", "conv")],
        "vision_encoder.stem: is for a backbone from scratch, not for openai/clip; leave it out",
    ),
    ([("text_encoder.patch_dropout", 0.5)], "text_encoder.patch_dropout: means nothing for text"),
    ([("audio_encoder.patch_dropout", 0.5)], "audio_encoder.patch_dropout: means nothing for audio"),
    (
        [("vision_encoder.backbone", "openai/clip"), ("vision_encoder.patch_dropout", 0.5)],
        "vision_encoder.patch_dropout: is for a backbone from scratch, not for openai/clip; leave it out",
    ),
    ([("text_encoder.patch_size", 8)], "text_encoder.patch_size: means nothing for text"),
    ([("text_encoder.memory.enabled", True)], "text_encoder.memory: means nothing for text"),
    ([("text_encoder.use_mrl", True)], "text_encoder.use_mrl: means nothing for text"),
    ([("text_encoder.use_perceiver", True)], "text_encoder.use_perceiver: means nothing for text"),
    ([("audio_encoder.max_len", 5)], "audio_encoder.max_len: means nothing for audio"),
    ([("audio_encoder.memory.enabled", True)], "audio_encoder.memory: means nothing for audio"),
    ([("audio_encoder.patch_size", 24)], "audio_encoder.patch_size: 24 does not divide the 128 mel bins; 16 does"),
    (
        [("vision_encoder.backbone", "transformer")],
        "vision_encoder.backbone: transformer is not for image; use vit, convnet",
    ),
    ([("text_encoder.backbone", "vit")], "text_encoder.backbone: vit is not for text; use transformer, bag or a"),
    (
        [("vision_encoder.backbone", "openai/clip"), ("vision_encoder.depth", 3)],
        "vision_encoder.depth: is for a backbone from scratch, not for openai/clip; leave it out",
    ),
    (
        [("text_encoder.backbone", "openai/clip"), ("text_encoder.vocab_size", 500)],
        "text_encoder.vocab_size: is for a backbone from scratch, not for openai/clip; leave it out",
    ),
    (
        [("vision_encoder.backbone", "openai/clip"), ("vision_encoder.memory.enabled", True)],
        "vision_encoder.memory.enabled: memory tokens need vision_encoder.backbone vit, not openai/clip; turn it off",
    ),
    ([("vision_encoder.pooling", "eot")], "vision_encoder.pooling: eot is not for image by vit; use auto, cls or mean"),
    (
        [("text_encoder.pooling", "cls")],
        "text_encoder.pooling: cls is not for text by transformer; use auto, mean or eot",
    ),
    (
        [("audio_encoder.pooling", "cls")],
        "audio_encoder.pooling: cls is not for audio by spectrogram; use auto or mean",
    ),
    ([("text_encoder.vocab_size", 100)], "text_encoder.vocab_size: 100 cannot hold all bytes; at least 259"),
    ([("text_encoder.max_len", 2)], "text_encoder.max_len: 2 leaves no room between start and end token; at least 3"),
    ([("losses.contrastive_weight", 0)], "losses.contrastive_weight: is 0 and nothing else is trained"),
    (
        [("losses.temperature", 0.05), ("losses.max_logit_scale", 10)],
        "losses.max_logit_scale: 10 is below the start, 1 / losses.temperature; raise it to 20, or start warmer",
    ),
    ([("losses.pairs", [])], "losses.pairs: [] must name each pair once; null stands for every pair"),
    ([("losses.pairs", ["image-text", "image-text"])], "losses.pairs: ['image-text', 'image-text'] must name each"),
    ([("losses.pairs", ["image-audio"])], "losses.pairs: image-audio needs an audio_encoder; add one or leave"),
    (
        [("losses.pairs", ["image-text"]), ("audio_encoder.dim", 64)],
        "losses.pairs: ['image-text'] leaves the embeddings of the audio_encoder untrained; add image-audio",
    ),
    (
        [("losses.pairs", ["text-audio", "image+audio-text"]), ("audio_encoder.dim", 64)],
        "losses.pairs: ['text-audio', 'image+audio-text'] leaves the embeddings of the vision_encoder untrained; add",
    ),
    (
        [("losses.pairs", ["image-text", "image+audio-text"]), ("audio_encoder.dim", 64)],
        "losses.pairs: ['image-text', 'image+audio-text'] leaves the embeddings of the audio_encoder untrained; add",
    ),
    ([("fusion.strategy", "gated")], "fusion: fuses nothing without image+audio-text in losses.pairs or a decoder;"),
    (
        [("fusion.strategy", "gated"), ("decoder.type", "trm"), ("fusion.layers", 3)],
        "fusion.layers: is for cross_attention, not for gated; leave it out",
    ),
    (
        [("decoder.type", "trm"), ("fusion.num_queries", 3)],
        "fusion.num_queries: is for cross_attention and gated, not for concat; leave it out",
    ),
    (
        [("decoder.type", "trm"), ("fusion.num_heads", 3)],
        "fusion.num_heads: is for cross_attention and gated, not for concat; leave it out",
    ),
    (
        [("decoder.type", "trm"), ("decoder.load_in_4bit", True)],
        "decoder.load_in_4bit: is for decoder.type qwen and causal_lm, not for trm; leave it out",
    ),
    (
        [("decoder.type", "trm"), ("decoder.use_lora", True)],
        "decoder.use_lora: is for decoder.type qwen and causal_lm, not for trm",
    ),
    (
        [("decoder.type", "trm"), ("decoder.lora.r", 3)],
        "decoder.lora: is for decoder.type qwen and causal_lm, not for trm",
    ),
    (
        [("decoder.type", "trm"), ("decoder.use_trm_recursion", True)],
        "decoder.use_trm_recursion: is for decoder.type qwen and causal_lm, not for trm",
    ),
    ([("decoder.type", "trm"), ("decoder.num_heads", 3)], "decoder.num_heads: 3 heads do not divide decoder.dim, 256"),
    ([("decoder.type", "qwen"), ("decoder.dim", 64)], "decoder.dim: is for decoder.type trm, not for qwen; leave it"),
    (
        [("decoder.type", "qwen"), ("decoder.freeze", True), ("decoder.use_lora", True)],
        "decoder.freeze: contradicts decoder.use_lora",
    ),
    (
        [("decoder.type", "causal_lm"), ("decoder.load_in_4bit", True), ("decoder.load_in_8bit", True)],
        "decoder.load_in_8bit: contradicts decoder.load_in_4bit; use one of them",
    ),
    ([("decoder.type", "causal_lm"), ("decoder.dim", 64)], "decoder.dim: is for decoder.type trm, not for causal_lm"),
    ([("decoder.type", "trm"), ("decoder.load_in_8bit", True)], "decoder.load_in_8bit: is for decoder.type qwen and"),
    ([("decoder.type", "causal_lm"), ("decoder.lora.r", 3)], "decoder.lora.r: does nothing without decoder.use_lora"),
    ([("decoder.type", "trm"), ("decoder.system_prompt", " ")], "decoder.system_prompt: is blank; say something"),
    (
        [("decoder.type", "trm"), ("decoder.generation.temperature", 1e-45)],
        "decoder.generation.temperature: 1e-45 is too small to divide by; 0 takes the likeliest token, anything else",
    ),
    (
        [("decoder.type", "trm"), ("decoder.generation.top_p", 0.5)],
        "decoder.generation.top_p: 0.5 does nothing at temperature 0, which draws nothing; leave it out",
    ),
    (
        [("decoder.type", "trm"), ("decoder.generation.top_k", 5)],
        "decoder.generation.top_k: 5 does nothing at temperature 0, which draws nothing; leave it out",
    ),
    (
        [("decoder.type", "trm"), ("decoder.prefix", "cls_patches"), ("vision_encoder.backbone", "convnet")],
        "decoder.prefix: cls_patches, but a convnet has no class token; use tokens",
    ),
    ([("decoder.type", "trm"), ("decoder.prefix", "memory")], "decoder.prefix: memory needs vision_encoder.memory.ena"),
    ([("decoder.type", "trm"), ("decoder.prefix", "perceiver")], "decoder.prefix: perceiver needs vision_encoder.use_"),
    ([("dataset.val_fraction", 1)], "dataset.val_fraction: 1 leaves nothing to train on; it must be below 1"),
    ([("dataset.prompt_templates", ["a photo"])], "dataset.prompt_templates: 'a photo' must hold {} once"),
    ([("dataset.prompt_templates", [])], "dataset.prompt_templates: is empty; give at least one"),
    ([("optimization.min_lr", 1)], "optimization.min_lr: 1.0 is above optimization.lr, 0.0005; the rate ends there"),
    ([("trainer.checkpoint.filename", "{epoch")], "trainer.checkpoint.filename: '{epoch' is no pattern"),
    ([("trainer.early_stopping_patience", 0)], "trainer.early_stopping_patience: got 0; it must be a whole number at"),
]


@pytest.mark.parametrize(("settings", "line"), CROSSING, ids=[line.partition(":")[0] for _, line in CROSSING])
def test_an_impossible_combination(settings: list[tuple[str, Any]], line: str) -> None:
    assert only_line(*settings).startswith(line)


CONVNET = ("vision_encoder.backbone", "convnet")
POSSIBLE: list[list[tuple[str, Any]]] = [
    [("losses.temperature", 0.05), ("losses.max_logit_scale", 20)],
    [("losses.temperature", 0.05), ("losses.max_logit_scale", 10), ("losses.learn_temperature", False)],
    [("losses.temperature", 0.01)],
    [("dataset.augmentation", "strong"), ("dataset.augmentation_options.scale", [0.5, 1.0])],
    [CONVNET, ("vision_encoder.depth", 3), ("vision_encoder.drop_rate", 0.1)],
    [BAG, ("text_encoder.dim", 100), ("text_encoder.drop_rate", 0.1), ("text_encoder.max_len", 9)],
    [BAG, ("text_encoder.use_attention_pooling", True), ("text_encoder.num_heads", 4)],
    [CONVNET, ("vision_encoder.dim", 100), ("vision_encoder.patch_size", 32)],
    [CONVNET, ("vision_encoder.use_attention_pooling", True), ("vision_encoder.num_heads", 4)],
    [("vision_encoder.stem", "conv"), ("vision_encoder.patch_dropout", 0.5), ("vision_encoder.memory.enabled", True)],
]


@pytest.mark.parametrize("settings", POSSIBLE, ids=lambda settings: " ".join(f"{key}={x}" for key, x in settings))
def test_a_possible_combination(settings: list[tuple[str, Any]]) -> None:
    assert told(reduce(merge, (nested(*item) for item in settings))) == ()


MAXIMA = {
    "seed": 2**32 - 1,
    "dataset.batch_size": 1_000_000,
    "dataset.num_workers": 1_024,
    "dataset.shapes.num_train": 10_000_000,
    "dataset.image_size": 4_096,
    "vision_encoder.dim": 16_384,
    "vision_encoder.depth": 1_000,
    "vision_encoder.mlp_ratio": 64,
    "vision_encoder.memory.num_memory_tokens": 16_384,
    "text_encoder.vocab_size": 2_000_000,
    "text_encoder.max_len": 131_072,
    "audio_encoder.audio_max_seconds": 3_600,
    "trainer.epochs": 1_000_000_000,
    "trainer.devices": 1_024,
}


@pytest.mark.parametrize("key", MAXIMA)
def test_what_is_out_of_all_proportion_is_refused_and_the_maximum_is_not(key: str) -> None:
    most = MAXIMA[key]
    assert only_line((key, most + 1)).startswith(f"{key}: got {most + 1}; it must be ")
    assert only_line((key, most + 1)).endswith(f" and at most {most}")
    assert not any("at most" in line for line in told(nested(key, most)))  # it may not fit another key


def test_no_number_of_things_is_unbounded() -> None:
    """A new key of whole numbers needs a maximum as well."""
    for schema in (ExperimentConfig, MemoryVLMConfig):
        for key in known_keys(schema):
            words = describe(locate(schema, key.split("."))[1])
            assert "whole number" not in words or "at most" in words, key


def test_patches_and_prefixes_have_a_maximum_too() -> None:
    many = only_line(("dataset.image_size", 4096), ("vision_encoder.patch_size", 1))
    assert many.startswith("dataset.image_size: 4096 makes more than 65536 patches of vision_encoder.patch_size, 1;")
    line = only_line(("vision_encoder.use_mrl", True), ("vision_encoder.mrl_dimensions", list(range(65, 0, -1))))
    assert line == "vision_encoder.mrl_dimensions: has 65 dimensions, each of which is compared; at most 64"


GUIDE = [
    ("training.learning_rate", -1, "training.learning_rate: got -1; it must be a number above 0"),
    ("training.lr", 1e-3, "training.lr: unknown key; did you mean training.learning_rate?"),
    (
        "model.memory.num_tokens",
        3,
        "model.memory.num_tokens: unknown key; did you mean model.memory.num_mem",
    ),
    ("model.num_heads", 7, "model.num_heads: 7 heads do not divide model.embed_dim, 512; 4 would"),
    ("model.text.num_heads", 7, "model.text.num_heads: 7 heads do not divide model.text.embed_dim, 512; 4 would"),
    ("model.image_size", 225, "model.image_size: 225 is no multiple of model.patch_size, 16; 224 would be"),
    ("training.data.image_size", 64, "training.data.image_size: 64 is not model.image_size, 224; leave it out"),
    ("model.text.vocab_size", 10, "model.text.vocab_size: 10 cannot hold all bytes; at least 259"),
    (
        "training.scheduler.scheduler_kwargs.min_lr",
        1.0,
        "training.scheduler.scheduler_kwargs.min_lr: 1.0 is above training.learning_rate, 0.0005",
    ),
    ("training.checkpoint.filename", "}", "training.checkpoint.filename: '}' is no pattern"),
    ("project.version", 1.0, "project.version: got 1.0; it must be text, in quotes"),
]


@pytest.mark.parametrize(("key", "value", "line"), GUIDE, ids=[row[0] for row in GUIDE])
def test_the_guide_s_faults_bear_the_guide_s_names(key: str, value: Any, line: str) -> None:
    base = to_tree(MemoryVLMConfig())
    del base["training"]["data"]["image_size"]
    (told,) = lines_of(merge(base, nested(key, value)))
    assert told.startswith(line)


def test_the_dialects_cannot_be_mixed() -> None:
    guide = to_tree(MemoryVLMConfig())
    assert lines_of({**guide, "optimization": {"lr": 1e-4}}) == [
        "optimization.lr: is a key of the experiment dialect (dataset, vision_encoder, ...), and this config is in the "
        "Memory-VLM dialect (model, training, project); write training.learning_rate"
    ]
    (line,) = lines_of({**to_tree(ExperimentConfig()), "training": {"epochs": 3}})
    assert line.startswith("training.epochs: is a key of the Memory-VLM dialect")
    assert line.endswith("write trainer.epochs")
    (line,) = lines_of({**guide, "trainer": {"strategy": "fsdp"}})  # which the guide has not
    assert line.endswith("; set it in what `impresa config show` prints of this config")


def test_all_faults_are_told_in_one_go() -> None:
    lines = lines_of(
        {
            "nmae": "x",
            "optimization": {"lr": -1, "betas": [2, 2], "min_lr": 3.0},
            "vision_encoder": {"num_heads": 7, "pooling": "eot", "memory": {"enabled": "yes", "mem_alfa": 0.5}},
            "dataset": "shapes",
        }
    )
    assert {line.partition(":")[0] for line in lines} == {
        "nmae",
        "optimization.lr",
        "optimization.betas",
        "vision_encoder.num_heads",
        "vision_encoder.pooling",
        "vision_encoder.memory.enabled",
        "vision_encoder.memory.mem_alfa",
        "dataset",
    }
    assert all(re.fullmatch(r"[\w.]+: [^\n]+; [^\n]+", line) for line in lines)


def test_a_wrong_field_is_not_told_again_by_a_rule_that_reads_it() -> None:
    assert only_line(("vision_encoder.num_heads", 0)) == (
        "vision_encoder.num_heads: got 0; it must be a whole number at least 1 and at most 16384"
    )


def test_a_part_that_is_wrong_as_a_whole_is_told_alone() -> None:
    tree = {"vision_encoder": None, "text_encoder": {"embed_dim": 192}}
    assert lines_of(tree) == ["vision_encoder: got null; it must be a mapping of keys"]


def test_values_are_shown_short_and_on_one_line() -> None:
    line = only_line(("optimization.lr", "a\nb" * 100))
    assert len(line) < 150
    assert "\n" not in line


@pytest.mark.parametrize("tree", [[], "shapes", None, 3])
def test_what_is_no_mapping_is_refused(tree: Any) -> None:
    assert lines_of(tree)[0].startswith("config: got ")


@pytest.mark.parametrize("key", [1, None, True, "a.b", "", "a b"])
def test_odd_keys_are_unknown_keys(key: Any) -> None:
    (line,) = lines_of({key: 1, "seed": 0})
    assert "unknown key" in line


def test_a_config_built_in_python_passes_the_same_validation() -> None:
    wrong = ExperimentConfig(
        seed=-3,
        optimization=OptimizationConfig(lr=True),
        trainer=TrainerConfig(epochs="3"),  # type: ignore[arg-type]
        vision_encoder=EncoderConfig(num_heads=7),
        dataset=DatasetConfig(train_path=Path("x")),  # type: ignore[arg-type]
        fusion=OptimizationConfig(),  # type: ignore[arg-type]
    )
    with pytest.raises(ConfigError) as caught:
        validate(wrong)
    told = {line.partition(":")[0] for line in caught.value.lines}
    assert told >= {"seed", "optimization.lr", "trainer.epochs", "vision_encoder.num_heads", "dataset.train_path"}
    assert "fusion.lr" in told


def test_a_guide_config_built_in_python_is_translated() -> None:
    assert validate(MemoryVLMConfig(model=ModelConfig(depth=3))).vision_encoder.depth == 3
    with pytest.raises(ConfigError, match=r"model\.depth: got 0"):
        validate(MemoryVLMConfig(model=ModelConfig(depth=0)))


def test_validation_is_idempotent_and_takes_whole_numbers_for_floats() -> None:
    once = validate(replace(ExperimentConfig(), optimization=OptimizationConfig(lr=1, warmup_epochs=2)))
    assert validate(once) == once
    assert type(once.optimization.lr) is float


def test_what_a_tree_lacks_has_its_default() -> None:
    config = experiment_from_tree({"text_encoder": {"depth": 3}, "audio_encoder": {}, "decoder": {"type": "trm"}})
    assert config.text_encoder.backbone == "transformer"
    assert config.audio_encoder is not None
    assert config.audio_encoder.backbone == "spectrogram"
    assert config.decoder is not None
    assert config.decoder.dim == 256
    assert experiment_from_tree({}) == ExperimentConfig()


def test_switches_that_are_off_keep_their_settings() -> None:
    tree = {"vision_encoder": {"use_perceiver": False, "perceiver_num_latents": 32, "mrl_dimensions": [64, 128]}}
    assert experiment_from_tree(tree).vision_encoder.perceiver_num_latents == 32


def test_attention_pooling_on_a_pretrained_backbone_has_its_own_heads() -> None:
    tree = {"vision_encoder": {"backbone": "a/b", "num_heads": 4}}
    assert lines_of(tree)[0].startswith("vision_encoder.num_heads: is for a backbone from scratch")
    experiment_from_tree(merge(tree, nested("vision_encoder.use_attention_pooling", True)))


def test_a_constant_rate_has_no_end_to_be_below() -> None:
    experiment_from_tree({"optimization": {"scheduler": "constant", "min_lr": 1.0}})


def test_an_image_size_is_free_for_a_pretrained_backbone() -> None:
    experiment_from_tree({"vision_encoder": {"backbone": "a/b"}, "dataset": {"image_size": 225}})


def test_the_package_gives_what_it_promises() -> None:
    assert all(getattr(impresa.config, name) for name in impresa.config.__all__)
    assert impresa.config.validate is validate
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        impresa.config.nothing  # noqa: B018
