"""The tables of the Memory-VLM configuration guide, held row by row against the config classes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from impresa.config.describe import describe
from impresa.config.memory_vlm import MemoryVLMConfig
from impresa.config.tree import hints, known_keys, leaves, lookup, to_tree

TABLES = Path(__file__).with_name("guide_tables.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"\(`([\w.]+)`\)\n((?:\|.*\n)+)", TABLES)
ROWS = [
    (f"{section}.{name}", kind, default)
    for section, table in SECTIONS
    for name, kind, default in re.findall(r"^\| `([\w.]+)` \| (\w+) \| (.+?) \|", table, flags=re.MULTILINE)
]
ADDITIONS = {
    "model.memory.memory_momentum",
    "model.contrastive.learn_temperature",
    "training.seed",
    "training.precision",
    "project.name",
    "project.description",
    "project.version",
    "project.tags",
}
"""Keys that have no row: our own, and the project, whose file the guide names but does not list."""
DEFAULTS = to_tree(MemoryVLMConfig())


def test_all_tables_are_read() -> None:
    assert len(SECTIONS) == 10
    assert len(ROWS) == TABLES.count("\n| `") == 60


@pytest.mark.parametrize(("key", "kind", "default"), ROWS, ids=[row[0] for row in ROWS])
def test_row(key: str, kind: str, default: str) -> None:
    value = lookup(DEFAULTS, key, default="missing")
    words = describe(annotation_of(key))
    starts = {"int": ("a whole number",), "float": ("a number",), "list": ("a list",), "bool": ("true or false",)}
    if kind in starts:
        assert words.startswith(starts[kind])
    else:
        assert kind == "str"
        assert not words.startswith(("a ", "true"))
    if default != "`...`":
        expected = float(default.strip("`")) if kind == "float" else yaml.safe_load(default.strip("`"))
        assert value == expected
        assert type(value) is type(expected)


def test_there_is_no_key_beyond_the_tables_but_the_listed_ones() -> None:
    assert set(known_keys(MemoryVLMConfig)) == {key for key, _, _ in ROWS} | ADDITIONS
    assert {path for path, _ in leaves(DEFAULTS)} == set(known_keys(MemoryVLMConfig))


def annotation_of(key: str) -> Any:
    owner: Any = MemoryVLMConfig
    for part in key.split("."):
        annotation = hints(owner)[part]
        owner = annotation if dataclasses.is_dataclass(annotation) else None
    return annotation
