"""Refusals: every fault is told, all in one go, one line each, in the names that the user wrote."""

from __future__ import annotations

import re
from dataclasses import replace
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
from refusals import lines_of, only_line, told

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
