"""JSON schema of the YAML files, so that editors complete and check them while they are written."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter

from impresa.config.describe import config_classes, documentation
from impresa.config.dialects import ENGINE, GUIDE, SCHEMAS

_TITLES = {ENGINE: "Impresa experiment", GUIDE: "Impresa experiment, Memory-VLM dialect"}
_INTERPOLATION = {"type": "string", "pattern": r"\$\{"}
_SHORT_PATHS = {
    "GuideOptimizerConfig": ("optimizer", "optimizer_kwargs"),
    "GuideSchedulerConfig": ("scheduler", "scheduler_kwargs"),
}


def json_schema(dialect: str) -> dict[str, Any]:
    """The schema of one dialect's YAML: what the config classes say, and what composing adds to it."""
    schema = TypeAdapter(SCHEMAS[dialect]).json_schema()
    for owner in config_classes(SCHEMAS[dialect]):
        part = schema["$defs"].get(owner.__name__, schema)
        docs = documentation(owner)
        part["properties"] = {
            key: {"description": docs[key], **_or_interpolation(value)} for key, value in part["properties"].items()
        }
    if dialect == GUIDE:
        _add_short_paths(schema["$defs"])
    schema["properties"]["defaults"] = {
        "type": "array",
        "description": "Configs that this one builds on, in order; `_self_` stands for this file.",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": _TITLES[dialect]}


def _or_interpolation(value: dict[str, Any]) -> dict[str, Any]:
    """Any value may also be written as `${another.key}`."""
    notes: dict[str, Any] = {key: value[key] for key in ("title", "default") if key in value}
    rule: dict[str, Any] = {key: item for key, item in value.items() if key not in notes}
    return {**notes, "anyOf": [*rule.pop("anyOf", []), *([rule] if rule else []), _INTERPOLATION]}


def _add_short_paths(definitions: dict[str, Any]) -> None:
    """The guide's `training.optimizer: adamw` and `training.optimizer_kwargs`, and the same for the scheduler."""
    training = definitions["TrainingConfig"]["properties"]
    for owner, (name, settings) in _SHORT_PATHS.items():
        properties = definitions[owner]["properties"]
        training[name]["anyOf"] += properties[name]["anyOf"]
        training[settings] = properties[settings]


def schema_files() -> dict[str, str]:
    """Name and content of the schema files that the shipped YAML files point at."""
    schemas = {dialect: json_schema(dialect) for dialect in SCHEMAS}
    # The files of the group `model` hold what stands under `model`.
    schemas["model"] = {"$ref": f"{GUIDE}.json#/$defs/ModelConfig"}
    return {f"{name}.json": json.dumps(schema, indent=2) + "\n" for name, schema in schemas.items()}
