"""docs/spec-map.md names only what exists, and names every key of the guide's dialect."""

from __future__ import annotations

import importlib
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from impresa.config.experiment import ExperimentConfig
from impresa.config.memory_vlm import MemoryVLMConfig

ROOT = Path(__file__).parents[2]
ROWS = re.findall(r"^\| (.+?) \| `([^`]+)` \|$", (ROOT / "docs/spec-map.md").read_text(), flags=re.MULTILINE)


def keys(config: type[Any], prefix: str = "") -> set[str]:
    """Dotted paths of all fields below a config class, branches and leaves."""
    found = set()
    hints = get_type_hints(config)
    for field in fields(config):
        path = prefix + field.name
        found.add(path)
        for kind in (hints[field.name], *get_args(hints[field.name])):
            if isinstance(kind, type) and is_dataclass(kind):
                found |= keys(kind, path + ".")
    return found


def leaves(config: type[Any]) -> set[str]:
    every = keys(config)
    return {path for path in every if not any(other.startswith(path + ".") for other in every)}


@pytest.mark.parametrize(("spec", "here"), ROWS)
def test_the_right_column_exists(spec: str, here: str) -> None:
    if here.startswith("impresa."):
        module, name = here.rsplit(".", 1)
        assert hasattr(importlib.import_module(module), name)
    elif here.endswith((".py", ".yaml")):
        assert (ROOT / here).is_file()
    else:
        assert here in leaves(ExperimentConfig)


def test_every_key_of_the_guide_is_mapped() -> None:
    additions = {
        "model.memory.memory_momentum",
        "model.contrastive.learn_temperature",
        "training.seed",
        "training.precision",
    }
    mapped = {spec.strip("`") for spec, _ in ROWS}
    assert leaves(MemoryVLMConfig) - additions <= mapped
