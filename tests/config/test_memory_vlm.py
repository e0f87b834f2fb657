"""The translation of the Memory-VLM dialect drops no field."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from impresa.config.experiment import ExperimentConfig, LabelsConfig
from impresa.config.memory_vlm import GUIDE_KEYS, LABELS, MemoryVLMConfig, to_experiment
from impresa.config.tree import known_keys, leaves, lookup, merge, nested, to_tree
from impresa.config.validate import experiment_from_tree, validate

OTHER_VALUES: dict[str, Any] = {
    "model.memory.memory_init": "zeros",
    "model.memory.memory_update": "gated",
    "model.memory.memory_position": "append",
    "model.contrastive.loss_type": "siglip",
    "training.optimizer.optimizer": "sgd",
    "training.scheduler.scheduler": "linear",
    "training.data.augmentation": "none",
    "training.checkpoint.mode": "max",
    "training.precision": "bf16-mixed",
    "training.optimizer.optimizer_kwargs.betas": [0.8, 0.9],
    "project.tags": ["new"],
    "training.logging.entity": "someone",
}
"""A valid value that is not the default, where it cannot be made from the default."""
FIELDS = [path for path, _ in leaves(to_tree(MemoryVLMConfig()))]
BASE = experiment_from_tree(to_tree(MemoryVLMConfig()))


def other_value(path: str, default: Any) -> Any:
    if path in OTHER_VALUES:
        return OTHER_VALUES[path]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default * 2 or 1
    return default / 2 or 0.1 if isinstance(default, float) else f"{default}x"


def changed(path: str) -> ExperimentConfig:
    value = other_value(path, dict(leaves(to_tree(MemoryVLMConfig())))[path])
    tree = nested(path, value)
    if path == "training.data.image_size":
        tree = merge(tree, nested("model.image_size", value))
    return experiment_from_tree(merge(nested("training", {}), tree))


@pytest.mark.parametrize("path", FIELDS)
def test_each_field_changes_the_experiment(path: str) -> None:
    assert changed(path) != BASE


@pytest.mark.parametrize("path", sorted(LABELS))
def test_a_label_changes_names_only(path: str) -> None:
    def without_names(config: ExperimentConfig) -> ExperimentConfig:
        logging = dataclasses.replace(config.trainer.logging, project="x", entity=None, name=None)
        trainer = dataclasses.replace(config.trainer, logging=logging)
        return dataclasses.replace(config, name="x", labels=LabelsConfig(), trainer=trainer)

    assert path in FIELDS
    assert without_names(changed(path)) == without_names(BASE)


def test_every_field_but_the_model_s_image_size_is_read_by_the_translation() -> None:
    assert set(GUIDE_KEYS.values()) == set(FIELDS) - {"model.image_size"}
    assert set(GUIDE_KEYS) <= set(known_keys(ExperimentConfig))


@pytest.mark.parametrize("engine_key", GUIDE_KEYS)
def test_the_table_names_the_guide_s_key_whose_value_arrives(engine_key: str) -> None:
    guide_key = GUIDE_KEYS[engine_key]
    value = lookup(to_tree(changed(guide_key)), engine_key)
    assert value == other_value(guide_key, lookup(to_tree(MemoryVLMConfig()), guide_key))
    assert value != lookup(to_tree(BASE), engine_key)


def test_the_defaults_are_a_valid_experiment_and_the_translation_changes_nothing_else() -> None:
    assert to_experiment(MemoryVLMConfig()) == validate(MemoryVLMConfig()) == BASE


def test_the_width_is_the_joint_embedding() -> None:
    config = experiment_from_tree({"model": {"embed_dim": 256}})
    assert config.vision_encoder.dim == config.vision_encoder.embed_dim == config.text_encoder.embed_dim == 256
    assert config.text_encoder.dim == 512


def test_the_data_s_image_size_follows_the_model_s() -> None:
    assert experiment_from_tree({"model": {"image_size": 64}}).dataset.image_size == 64
