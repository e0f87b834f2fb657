"""Settings that do not go together, each refused in one line, and some that do."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest

from impresa.config.tree import merge, nested
from refusals import only_line, told

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
