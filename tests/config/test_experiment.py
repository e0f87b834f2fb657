"""The keys of the model report, and its three profiles with their figures."""

from __future__ import annotations

import dataclasses

import pytest

from impresa.config import ExperimentConfig, load_experiment
from impresa.config.tree import known_keys

KEYS = {
    "dataset": {
        "train_path",
        "batch_size",
        "eval_batch_size",
        "image_size",
    },
    "vision_encoder": {
        "backbone",
        "projection",
        "use_perceiver",
        "perceiver_num_latents",
        "perceiver_num_layers",
        "use_attention_pooling",
        "use_mrl",
        "mrl_dimensions",
    },
    "text_encoder": {
        "backbone",
        "embed_dim",
    },
    "audio_encoder": {
        "backbone",
        "embed_dim",
    },
    "decoder": {
        "type",
        "load_in_4bit",
        "use_lora",
        "lora.r",
        "lora.alpha",
        "lora.dropout",
        "lora.target_modules",
        "use_trm_recursion",
    },
    "fusion": {
        "strategy",
        "layers",
    },
    "losses": {
        "type",
        "contrastive_weight",
        "mrl_weight",
        "temperature",
        "learn_temperature",
        "gather_distributed",
        "sample_single_mrl_dim",
        "pairs",
        "duplicates",
    },
    "optimization": {
        "lr",
        "scheduler",
        "precision",
    },
    "trainer": {
        "epochs",
        "logging.log_interval",
        "checkpoint.save_top_k",
    },
}


def test_the_root_has_the_nine_parts_and_what_names_a_run() -> None:
    assert [field.name for field in dataclasses.fields(ExperimentConfig)] == ["name", "seed", "labels", *KEYS]


@pytest.mark.parametrize("part", KEYS)
def test_the_keys_of_the_report_exist(part: str) -> None:
    assert {f"{part}.{key}" for key in KEYS[part]} <= set(known_keys(ExperimentConfig))


def test_pixmo_alignment() -> None:
    config = load_experiment("pixmo_alignment")
    assert config.decoder is None
    assert config.vision_encoder.embed_dim == config.text_encoder.embed_dim == 4096
    assert config.vision_encoder.mrl_dimensions == (2048, 1024, 512, 256, 128)
    assert config.vision_encoder.use_mrl
    assert config.vision_encoder.backbone == "openai/clip-vit-large-patch14-336"
    assert config.dataset.image_size == 336
    assert config.optimization.lr == 5e-5


def test_perceiver_mrl_alignment() -> None:
    config = load_experiment("perceiver_mrl_alignment")
    assert config.decoder is None
    assert config.vision_encoder.embed_dim == config.text_encoder.embed_dim == 512
    assert config.vision_encoder.use_perceiver
    assert config.vision_encoder.perceiver_num_latents == 64
    assert config.vision_encoder.mrl_dimensions == (256, 128, 64)
    assert config.vision_encoder.use_mrl
    assert config.vision_encoder.backbone == "openai/clip-vit-large-patch14"
    assert config.optimization.lr == 5e-5


def test_trm_vlm_qa_3b_reg() -> None:
    config = load_experiment("trm_vlm_qa_3b_reg")
    decoder = config.decoder
    assert decoder is not None
    assert (decoder.type, decoder.model) == ("qwen", "Qwen/Qwen2.5-3B-Instruct")
    assert decoder.load_in_4bit
    assert decoder.use_lora
    assert decoder.use_trm_recursion
    assert decoder.prefix == "perceiver"
    assert config.vision_encoder.use_perceiver
    assert config.vision_encoder.perceiver_num_latents == 64
    assert config.vision_encoder.backbone == "openai/clip-vit-large-patch14"
    assert config.optimization.lr == 2e-5
    assert config.optimization.weight_decay == 0.2
    assert decoder.lora.dropout == config.fusion.dropout == decoder.recursion.dropout == 0.2


@pytest.mark.parametrize(
    ("group", "sizes"),
    [("base", (16, 512, 12, 8, 64)), ("large", (14, 768, 24, 12, 128)), ("huge", (14, 1024, 32, 16, 256))],
)
def test_model_group(group: str, sizes: tuple[int, ...]) -> None:
    config = load_experiment("training", [f"model={group}"])
    vision, text = config.vision_encoder, config.text_encoder
    memory = vision.memory
    assert (vision.patch_size, vision.dim, vision.depth, vision.num_heads, memory.num_memory_tokens) == sizes
    assert (text.dim, text.depth, memory.dim) == (vision.dim, vision.depth, vision.dim)


def test_the_tiny_model_is_small() -> None:
    vision = load_experiment(None, ["model=tiny"]).vision_encoder
    assert vision.dim * vision.depth < 1000
