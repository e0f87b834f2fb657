"""The generated files are current, and the head of each shipped YAML file says what it should."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from impresa.config.memory_vlm import SCHEMAS
from impresa.config.paths import STUDIES, shipped_folder, shipped_names
from impresa.config.reference import PAGE, json_schema, reference, schema_files

FIX = "run python -m impresa.config.reference"
FILES = sorted(path for path in shipped_folder().glob("**/*.yaml") if path.parent.name != STUDIES)


@pytest.mark.parametrize(("name", "text"), schema_files().items())
def test_the_schema_files_are_current(name: str, text: str) -> None:
    assert (shipped_folder() / "schema" / name).read_text(encoding="utf-8") == text, FIX


def test_the_reference_page_is_current() -> None:
    assert (shipped_folder().parent / "docs" / PAGE).read_text(encoding="utf-8") == reference(), FIX


@pytest.mark.parametrize("dialect", SCHEMAS)
def test_a_schema_describes_every_key_and_forbids_others(dialect: str) -> None:
    schema = json_schema(dialect)
    for part in (schema, *schema["$defs"].values()):
        assert part["additionalProperties"] is False
        for key, value in part["properties"].items():
            assert value.get("description"), key


def test_the_schema_knows_the_guide_s_short_paths() -> None:
    training = json_schema("memory_vlm")["$defs"]["TrainingConfig"]["properties"]
    assert {"optimizer_kwargs", "scheduler_kwargs"} <= set(training)
    assert {"enum": ["adamw", "adam", "sgd", "muon", "adamw8bit"], "type": "string"} in training["optimizer"]["anyOf"]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(shipped_folder())) for path in FILES])
def test_a_shipped_file_begins_with_its_command_and_its_schema(path: Path) -> None:
    command, schema, about = path.read_text(encoding="utf-8").splitlines()[:3]
    name = path.relative_to(shipped_folder()).with_suffix("").as_posix()
    runs = {
        "default": r"# impresa train",
        **dict.fromkeys(("model", "training", "project"), rf"# impresa train --config-name={name} .+"),
        f"model/{path.stem}": rf"# impresa train model={path.stem}",
    }
    assert re.fullmatch(runs.get(name, rf"# impresa train {name}( .+)?"), command)
    target = path.parent / schema.removeprefix("# yaml-language-server: $schema=")
    expected = json.loads(target.read_text(encoding="utf-8"))
    guide = name in ("default", "model", "training", "project")
    assert target.stem == ("model" if "/" in name else "memory_vlm" if guide else "experiment")
    assert expected
    assert re.match(r"# \w.+[.;:]", about)


def test_every_shipped_name_is_tested() -> None:
    assert {path.stem for path in FILES if path.parent == shipped_folder()} == set(shipped_names())
