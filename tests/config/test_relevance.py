"""Keys that do nothing where they stand: refused, or warned of before a training run."""

from __future__ import annotations

import subprocess
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from impresa.config import load_experiment, to_yaml
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.config.paths import shipped_names
from impresa.config.relevance import idle_keys, notices
from impresa.config.relevance_tables import REFUSED, WARNED
from impresa.config.runs import adopt_towers
from impresa.config.tree import known_keys, merge, nested
from impresa.config.validate import experiment_from_tree
from impresa.errors import ConfigError
from tiny_run import TINY

TRM, QWEN = ("decoder.type", "trm"), ("decoder.type", "qwen")
ALIGNMENT = ("name", "alignment")
Setting = tuple[str, Any]
PERCEIVER: list[Setting] = [("vision_encoder.use_perceiver", True)]
MEMORY: list[Setting] = [("vision_encoder.memory.enabled", True)]
STATIC: list[Setting] = [*MEMORY, ("vision_encoder.memory.memory_update", "static")]
FILES: list[Setting] = [("dataset.train_path", "a")]
FAULTS: list[tuple[Setting, Setting, str]] = [
    (TRM, ("losses.type", "siglip"), "with a decoder, which learns answers alone; leave it out"),
    (TRM, ("losses.mrl_weight", 2), "with a decoder, which"),
    (QWEN, ("optimization.lr_logits", 1), "with a decoder, which"),
    (TRM, ("optimization.chunk_size", 8), "with a decoder, in whose loss samples do not meet; lower dataset.batch"),
    (TRM, ("dataset.caption_dropout", 0.1), "with a decoder, which"),
    (ALIGNMENT, ("dataset.questions_per_image", 2), "without a decoder, which alone is asked; add one or leave it out"),
    (ALIGNMENT, ("dataset.question_column", "q"), "without a decoder, which"),
    (ALIGNMENT, ("dataset.answer_column", "a"), "without a decoder, which"),
    (ALIGNMENT, ("dataset.kind_column", "k"), "without a decoder, which"),
    (ALIGNMENT, ("dataset.audio_augmentation", "light"), "without an audio_encoder; leave it out"),
    (TRM, ("dataset.audio_augmentation", "light"), "without an audio_encoder; leave it out"),
    (ALIGNMENT, ("optimization.lr_fusion", 1), "without a decoder or image+audio-text in losses.pairs, which"),
    (ALIGNMENT, ("optimization.layer_decay", 0.8), "without a pretrained tower that is trained"),
    (ALIGNMENT, ("optimization.lr_lora", 1), "without decoder.use_lora, for the"),
    (QWEN, ("optimization.lr_lora", 1), "without decoder.use_lora, for the"),
    (TRM, ("optimization.lr_lora", 1), "without decoder.use_lora, for the"),
    (ALIGNMENT, ("dataset.batch_by_length", True), "without a decoder: negatives of captions are not chosen by length"),
    (QWEN, ("decoder.lora.r", 4), "without decoder.use_lora; set that to true or leave it out"),
]
NOTICES: list[tuple[list[Setting], str]] = [
    (
        [("dataset.image_root", "images"), ("dataset.max_image_pixels", 9), ("dataset.skip_unsupported_rows", True)],
        "dataset.image_root, dataset.skip_unsupported_rows and dataset.max_image_pixels: are for data in files",
    ),
    ([TRM, ("text_encoder.depth", 3)], "text_encoder.depth: does nothing with a decoder, which reads the text itself"),
    (
        [TRM, ("text_encoder.depth", 3), ("text_encoder.dim", 64)],
        "text_encoder.dim and text_encoder.depth: do nothing with a decoder, which reads the text itself",
    ),
    ([TRM, ("dataset.prompt_templates", ["a {}"])], "dataset.prompt_templates: does nothing with a decoder"),
    (
        [TRM, ("dataset.train_path", "x"), ("dataset.class_names", ["a"])],
        "dataset.class_names: does nothing with a decoder",
    ),
    (
        [("dataset.max_file_mib", 1), ("dataset.class_names", ["a"]), ("dataset.allow_outside", True)],
        "dataset.class_names, dataset.max_file_mib and dataset.allow_outside: are for data in files, not for",
    ),
    (
        [("dataset.batch_size", 64), ("optimization.chunk_size", 64)],
        "optimization.chunk_size: does nothing where no tower has more rows in a batch (dataset.batch_size)",
    ),
    (
        [("dataset.batch_size", 1), ("optimization.packing", True)],
        "optimization.packing: does nothing for one text at a time, which has no padding",
    ),
    (
        [("optimization.chunk_size", 1), ("optimization.packing", True)],
        "optimization.packing: does nothing for one text at a time, which has no padding",
    ),
    ([TRM, ("vision_encoder.embed_dim", 64)], "vision_encoder.embed_dim: does nothing with a decoder"),
    ([TRM, ("audio_encoder.embed_dim", 64)], "audio_encoder.embed_dim: does nothing with a decoder"),
    ([TRM, ("vision_encoder.use_mrl", True)], "vision_encoder.use_mrl: does nothing with a decoder"),
    ([TRM, ("vision_encoder.pooling", "mean")], "vision_encoder.pooling: does nothing with a decoder"),
    ([TRM, ("vision_encoder.use_attention_pooling", True)], "vision_encoder.use_attention_pooling: does nothing with"),
    (
        [TRM, ("vision_encoder.use_perceiver", True)],
        "vision_encoder.use_perceiver: does nothing here, the decoder reads no latents; set decoder.prefix to",
    ),
    (
        [TRM, ("vision_encoder.use_perceiver", True), ("vision_encoder.perceiver_num_latents", 3)],
        "vision_encoder.use_perceiver and vision_encoder.perceiver_num_latents: do nothing here, the decoder",
    ),
    ([TRM, ("audio_encoder.pooling", "mean")], "audio_encoder.pooling: does nothing with a decoder"),
    (
        [TRM, *MEMORY, ("decoder.prefix", "memory"), ("vision_encoder.projection", "none")],
        "vision_encoder.projection: does nothing here, the decoder reads memory tokens (decoder.prefix)",
    ),
    (
        [QWEN, ("decoder.recursion.num_layers", 3)],
        "decoder.recursion.num_layers: does nothing for a pretrained model without",
    ),
    (
        [TRM, ("decoder.generation.seed", 3)],
        "decoder.generation.seed: does nothing at decoder.generation.temperature 0, which draws nothing",
    ),
    (
        [TRM, ("decoder.recursion.recursive", False), ("decoder.recursion.num_rounds", 3)],
        "decoder.recursion.num_rounds: does nothing without decoder.recursion.recursive, a plain stack",
    ),
    (
        [("vision_encoder.perceiver_num_latents", 3)],
        "vision_encoder.perceiver_num_latents: is for vision_encoder.use_p",
    ),
    (
        [*PERCEIVER, ("vision_encoder.projection", "linear")],
        "vision_encoder.projection: does nothing under vision_enco",
    ),
    (
        [*PERCEIVER, ("vision_encoder.pooling", "mean"), ("vision_encoder.use_attention_pooling", True)],
        "vision_encoder.use_attention_pooling and vision_encoder.pooling: do nothing under vision_encoder.use_perc",
    ),
    (
        [("text_encoder.pooling", "mean"), ("text_encoder.use_attention_pooling", True)],
        "text_encoder.pooling: does nothing under text_encoder.use_attention_pooling",
    ),
    ([("vision_encoder.mrl_dimensions", [8])], "vision_encoder.mrl_dimensions: is for vision_encoder.use_mrl"),
    (
        [("losses.mrl_weight", 2), ("losses.sample_single_mrl_dim", True)],
        "losses.mrl_weight and losses.sample_single_mrl_dim: do nothing without vision_encoder.use_mrl",
    ),
    (
        [
            ("vision_encoder.use_mrl", True),
            ("vision_encoder.mrl_dimensions", [8]),
            ("losses.sample_single_mrl_dim", True),
        ],
        "losses.sample_single_mrl_dim: does nothing where vision_encoder.mrl_dimensions has a single one",
    ),
    (
        [("vision_encoder.memory.dim", 64), ("vision_encoder.memory.mem_alpha", 0.1)],
        "vision_encoder.memory.dim and vision_encoder.memory.mem_alpha: are for vision_encoder.memory.enabled",
    ),
    (
        [*MEMORY, ("vision_encoder.memory.memory_position", "append")],
        "vision_encoder.memory.memory_position: orders the",
    ),
    ([*STATIC, ("vision_encoder.memory.mem_alpha", 0.1)], "vision_encoder.memory.mem_alpha: is not for static tokens"),
    (
        [*STATIC, ("vision_encoder.memory.mem_reinit_steps", 3)],
        "vision_encoder.memory.mem_reinit_steps: is not for sta",
    ),
    (
        [*MEMORY, ("vision_encoder.memory.mem_alpha", 0.0), ("vision_encoder.memory.memory_update", "gated")],
        "vision_encoder.memory.memory_update: does nothing where vision_encoder.memory.mem_alpha is 0",
    ),
    ([("vision_encoder.freeze", True), ("vision_encoder.drop_rate", 0.1)], "vision_encoder.drop_rate: does nothing in"),
    (
        [("vision_encoder.freeze", True), ("vision_encoder.patch_dropout", 0.1)],
        "vision_encoder.patch_dropout: does nothing in a frozen tower",
    ),
    (
        [("dataset.image_size", 16), ("vision_encoder.patch_dropout", 0.1)],
        "vision_encoder.patch_dropout: does nothing where dataset.image_size is a single patch",
    ),
    (
        [("dataset.val_path", "a"), ("dataset.val_fraction", 0.1)],
        "dataset.val_fraction: does nothing beside dataset.val",
    ),
    ([("dataset.image_column", "a")], "dataset.image_column: is for data in files, not for the embedded shapes"),
    ([*FILES, ("dataset.audio_column", "a")], "dataset.audio_column: does nothing without an audio_encoder"),
    ([*FILES, TRM, ("dataset.label_column", "a")], "dataset.label_column: does nothing with a decoder"),
    ([*FILES, ("dataset.shapes.num_val", 3)], "dataset.shapes.num_val: is for the embedded shapes"),
    (
        [("dataset.num_workers", 0), ("dataset.prefetch_factor", 3)],
        "dataset.prefetch_factor: does nothing where dataset",
    ),
    (
        [TRM, ("dataset.batch_by_length", True), ("dataset.batch_size", 1), ("trainer.devices", 1)],
        "dataset.batch_by_length: does nothing where dataset.batch_size is 1",
    ),
    ([("trainer.accelerator", "cpu"), ("dataset.pin_memory", False)], "dataset.pin_memory: is for a GPU"),
    (
        [("losses.learn_temperature", False), ("losses.max_logit_scale", 10)],
        "losses.max_logit_scale: does nothing without losses.learn_temperature",
    ),
    ([("losses.siglip_bias", 1.0)], "losses.siglip_bias: is for losses.type siglip, not for clip"),
    (
        [("trainer.devices", 1), ("losses.gather_distributed", True)],
        "losses.gather_distributed: does nothing in one pro",
    ),
    ([("losses.pairs", ["image-text"])], "losses.pairs: does nothing without an audio_encoder: there is one pair"),
    ([("optimization.lr_pretrained", 1)], "optimization.lr_pretrained: does nothing without a pretrained tower that"),
    ([("optimization.lr_memory", 1)], "optimization.lr_memory: does nothing without memory tokens that are trained"),
    (
        [("losses.learn_temperature", False), ("optimization.lr_logits", 1)],
        "optimization.lr_logits: does nothing without losses.learn_temperature",
    ),
    (
        [("optimization.optimizer", "sgd"), ("optimization.eps", 1)],
        "optimization.eps: is for adam and its kin, not for sgd",
    ),
    (
        [("optimization.scheduler", "constant"), ("optimization.min_lr", 1)],
        "optimization.min_lr: does nothing under opt",
    ),
    ([("optimization.cooldown_epochs", 1)], "optimization.cooldown_epochs: is for optimization.scheduler const_cooldo"),
    (
        [("optimization.warmup_epochs", 1), ("optimization.warmup_steps", 0)],
        "optimization.warmup_epochs: does nothing beside optimization.warmup_steps",
    ),
    ([("trainer.strategy", "ddp")], "trainer.strategy: is ddp by auto as well"),
    ([("trainer.logging.entity", "me")], "trainer.logging.entity: is for trainer.logging.wandb"),
    (
        [
            ("trainer.checkpoint.save_top_k", 0),
            ("trainer.checkpoint.mode", "max"),
            ("trainer.checkpoint.filename", "a"),
        ],
        "trainer.checkpoint.filename: does nothing where trainer.checkpoint.save_top_k is 0",
    ),
]
FINE: list[list[Setting]] = [
    [("optimization.scheduler", "const_cooldown"), ("optimization.cooldown_epochs", 1), ("optimization.min_lr", 1e-5)],
    [("dataset.image_root", "images"), ("dataset.train_path", "photos")],
    [("text_encoder.depth", 3), ("losses.type", "siglip"), ("optimization.lr_logits", 1)],
    [("dataset.test_path", "x"), ("dataset.max_file_mib", 1), ("dataset.allow_outside", True)],
    [TRM, ("dataset.questions_per_image", 2), ("decoder.recursion.num_layers", 3)],
    [QWEN, ("decoder.use_lora", True), ("decoder.lora.r", 4)],
    [QWEN, ("decoder.use_lora", True), ("optimization.lr_lora", 1), ("optimization.lr_fusion", 1)],
    [TRM, ("fusion.projector", "mlp"), ("optimization.lr_fusion", 1), ("dataset.batch_by_length", True)],
    [QWEN, ("decoder.use_trm_recursion", True), ("decoder.recursion.num_layers", 3)],
    [TRM, ("vision_encoder.use_perceiver", True), ("decoder.prefix", "perceiver")],
    [TRM, ("vision_encoder.pooling", "mean"), ("vision_encoder.freeze", True)],
    [TRM, ("decoder.recursion.recursive", False), ("decoder.recursion.num_layers", 3)],
    [*MEMORY, ("vision_encoder.memory.mem_alpha", 0.1), ("optimization.lr_memory", 1)],
    [("losses.type", "siglip"), ("losses.learn_temperature", False), ("optimization.lr_logits", 1)],
    [("text_encoder.backbone", "a/b"), ("optimization.lr_pretrained", 1), ("optimization.layer_decay", 0.8)],
    [
        ("vision_encoder.use_mrl", True),
        ("vision_encoder.mrl_dimensions", [8, 4]),
        ("losses.sample_single_mrl_dim", True),
    ],
    [*FILES, ("dataset.val_fraction", 0.1), ("dataset.label_column", "a"), ("dataset.max_bad_fraction", 0.1)],
    [("dataset.train_path", "a"), ("dataset.test_path", "shapes"), ("dataset.shapes.num_test", 3)],
    [("losses.gather_distributed", True)],
    [("trainer.logging.wandb", True), ("trainer.logging.entity", "me")],
    [TRM, ("decoder.generation.seed", 3), ("decoder.generation.temperature", 1.0)],
]


def experiment(*settings: Setting) -> ExperimentConfig:
    trees: list[dict[str, Any]] = [nested(key, value) for key, value in settings]
    return experiment_from_tree(reduce(merge, trees))


@pytest.mark.parametrize(("base", "setting", "why"), FAULTS, ids=[row[1][0] for row in FAULTS])
def test_what_does_nothing_is_refused(base: Setting, setting: Setting, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment(base, setting)
    (line,) = caught.value.lines
    assert line.startswith(f"{setting[0]}: does nothing {why}")


@pytest.mark.parametrize(("settings", "line"), NOTICES)
def test_what_another_arm_of_an_ablation_needs_is_warned_of(settings: list[Setting], line: str) -> None:
    (warning,) = notices(experiment(*settings))
    assert warning.startswith(line)


@pytest.mark.parametrize("settings", FINE)
def test_what_does_something_is_not_warned_of(settings: list[Setting]) -> None:
    assert notices(experiment(*settings)) == []


def test_the_rules_name_keys_that_there_are() -> None:
    known = list(known_keys(ExperimentConfig))
    for key in (key for rule in (*REFUSED, *WARNED) for key in rule.keys):
        section = f"{key.removesuffix('.*')}."
        assert (key in known and not key.endswith(".*")) or any(other.startswith(section) for other in known)


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_configs_write_nothing_in_vain(name: str) -> None:
    assert notices(load_experiment(name)) == []


def test_what_a_tower_has_from_its_run_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    tower = EncoderConfig(embed_dim=64, pooling="mean", use_mrl=True, mrl_dimensions=(32,), use_perceiver=True)
    run = ExperimentConfig(vision_encoder=tower, text_encoder=EncoderConfig(backbone="transformer", embed_dim=64))
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(run))
    (tmp_path / "run" / "manifest.json").write_text("{}")
    adopted = adopt_towers(experiment(TRM, ("vision_encoder.checkpoint", str(tmp_path / "run"))))
    assert adopted.vision_encoder.use_mrl
    assert notices(adopted) == []


@pytest.mark.parametrize("use", ["library", "command line"])
def test_a_training_run_names_each_key_once(use: str, tmp_path: Path) -> None:
    overrides = [*TINY, "losses.siglip_bias=1", "trainer.max_steps=1", "vision_encoder.memory.enabled=false"]
    code = "import sys; from pathlib import Path; from impresa.config import load_experiment; "
    code += "from impresa.training.dry_run import dry_run; dry_run(load_experiment('shapes', sys.argv[1:]))"
    command = ["-c", code] if use == "library" else ["-m", "impresa", "train", "shapes", "--dry-run"]
    done = subprocess.run([sys.executable, *command, *overrides], capture_output=True, text=True, check=True)
    assert done.stderr.count("losses.siglip_bias: is for losses.type siglip, not for clip") == 1
    assert done.stderr.count("are for vision_encoder.memory.enabled") == 1


def test_idle_keys_are_told_whatever_their_values_but_not_those_of_a_control() -> None:
    idle = idle_keys(load_experiment("shapes"))
    assert idle["vision_encoder.perceiver_num_layers"] == "is for `vision_encoder.use_perceiver`"
    assert idle["fusion.num_queries"].startswith("fuses nothing")
    position = "vision_encoder.memory.memory_position"
    assert {"vision_encoder.depth", "losses.type", position}.isdisjoint(idle)
    assert position in idle_keys(load_experiment("shapes", ["vision_encoder.memory.enabled=false"]))
    with_decoder = idle_keys(load_experiment("shapes", ["decoder.type=trm"]))
    assert {"decoder.use_lora", "decoder.lora.r", "text_encoder.depth", "losses.type"} <= with_decoder.keys()
