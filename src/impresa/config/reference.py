"""Files generated from the config classes: the reference page, and JSON schemas by which editors check YAML files.

`python -m impresa.config.reference` writes them anew.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from impresa.config.decoder import DecoderConfig, TowerLoraConfig
from impresa.config.describe import describe
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.config.memory_vlm import ENGINE, ENGINE_KEYS, GUIDE, LABELS, SCHEMAS, MemoryVLMConfig
from impresa.config.paths import shipped_folder
from impresa.config.tree import hints, locate, section, to_tree
from impresa.config.types import Section

# Only here: it takes pydantic a tenth of a second to look the docstrings up, which a command should not pay.
Section.__pydantic_config__["use_attribute_docstrings"] = True

PAGE = "config-reference.md"
_INTRODUCTION = """\
# Configuration reference

<!-- Generated from the config classes by `python -m impresa.config.reference`; do not edit. -->

A config is written in one of two dialects; the keys at its top level tell which. The *experiment* dialect is what the
engine reads. The *Memory-VLM* dialect (`model`, `training`, `project`) is translated into it, key by key.
`impresa config show NAME` prints what a config comes to, `impresa config list` the configs that are shipped. Every key
can be set in YAML and on the command line, as `optimization.lr=1e-4` or `--optimization.lr 1e-4`.

Both read values alike: numbers are decimal (`42`, `1_000`, `5e-4`), switches `true` or `false`, nothing is `null`, and
everything else is text; `0042`, `1:30`, `0b11`, `yes` and `None` are refused where no text is asked for. A config of
your own may refer to other keys and to the environment (`${dataset.batch_size}`, `${oc.env:LR}`); that of a run holds
values only, and one that refers to anything is refused.
"""
_GUIDE_INTRODUCTION = """\
## The Memory-VLM dialect

`training.optimizer=adamw`, `training.optimizer_kwargs.*`, `training.scheduler=cosine` and
`training.scheduler_kwargs.*` are short for the full keys below. A *label* names things and changes no number.
`training.seed`, `training.precision`, `model.contrastive.learn_temperature` and `model.memory.memory_momentum` are
additions to the Memory-VLM configuration guide.
"""
_ROOTS: dict[str, Any] = {
    ENGINE: ExperimentConfig(
        vision_encoder=EncoderConfig(lora=TowerLoraConfig()),
        text_encoder=EncoderConfig(backbone="transformer", lora=TowerLoraConfig()),
        audio_encoder=EncoderConfig(backbone="spectrogram", lora=TowerLoraConfig()),
        decoder=DecoderConfig(),
    ),
    GUIDE: MemoryVLMConfig(),
}
_SCHEMA_TITLES = {ENGINE: "Impresa experiment", GUIDE: "Impresa experiment, Memory-VLM dialect"}
_INTERPOLATION = {"type": "string", "pattern": r"\$\{"}


def reference() -> str:
    """The page docs/config-reference.md."""
    engine, guide = _sections(ENGINE, "the experiment dialect"), _sections(GUIDE, "the Memory-VLM dialect")
    return "\n".join((_INTRODUCTION, "## The experiment dialect\n", *engine, _GUIDE_INTRODUCTION, *guide))


def _documentation(path: str, schema: type) -> dict[str, str]:
    """The meaning of each field of a config class that is used at `path`.

    It is the docstring under the field, here or in a class that is inherited from; without one it is that of the
    section which the field holds, or of the engine's key which it sets.
    """
    docs: dict[str, str] = {}
    for owner in filter(dataclasses.is_dataclass, reversed(schema.__mro__)):
        properties = TypeAdapter(owner).json_schema()["properties"]
        docs |= {key: _one_line(value["description"]) for key, value in properties.items() if "description" in value}
    for name, annotation in hints(schema).items():
        if name not in docs and (part := section(annotation)):
            docs[name] = _one_line(part.__doc__)
        elif name not in docs:
            parent, _, key = ENGINE_KEYS[_below(path, name)].rpartition(".")
            engine = section(locate(ExperimentConfig, parent.split("."))[1])
            docs[name] = _documentation(parent, engine)[key]
    return docs


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _sections(dialect: str, title: str) -> Iterator[str]:
    """One table for each config class, under the paths where it is used."""
    uses_of: dict[type, dict[str, Any]] = {}
    for path, part in _parts(_ROOTS[dialect]):
        uses_of.setdefault(type(part), {})[path] = part
    for schema, uses in uses_of.items():
        yield f"### {', '.join(f'`{path}`' for path in uses) if '' not in uses else f'Top level of {title}'}\n"
        yield f"{_one_line(schema.__doc__ or '')}\n"
        first, *others = uses.items()
        yield from _other_defaults(first[1], others)
        yield _table(*first)


def _parts(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every section of a config with its path, the root first."""
    yield path, config
    schema: type = type(config)
    for name in hints(schema):
        if dataclasses.is_dataclass(value := getattr(config, name)):
            yield from _parts(value, _below(path, name))


def _other_defaults(first: Any, others: list[tuple[str, Any]]) -> Iterator[str]:
    for path, part in others:
        for key, value in to_tree(part).items():
            if value != to_tree(first)[key] and not isinstance(value, dict):
                yield f"The default of `{path}.{key}` is {_code(value)}.\n"


def _table(path: str, part: Any) -> str:
    schema: type = type(part)
    defaults, docs = to_tree(part), _documentation(path, schema)
    rows = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for name, annotation in hints(schema).items():
        key, nested = _below(path, name), section(annotation) is not None
        value = f"see `{key}`" if nested else describe(annotation)
        default = "" if nested and getattr(schema(), name) is not None else _code(None if nested else defaults[name])
        sets = f" {'Label; sets' if key in LABELS else 'Sets'} `{ENGINE_KEYS[key]}`." if key in ENGINE_KEYS else ""
        rows.append(f"| `{name}` | {value} | {default} | {docs[name]}{sets} |")
    return "\n".join(rows) + "\n"


def _code(value: Any) -> str:
    return f"`{json.dumps(value)}`"


def json_schema(dialect: str) -> dict[str, Any]:
    """The schema of one dialect's YAML: what the config classes say, and what composing adds to it."""
    schema = TypeAdapter(SCHEMAS[dialect]).json_schema()
    for owner, path in {type(part): path for path, part in _parts(_ROOTS[dialect])}.items():
        properties = schema["$defs"].get(owner.__name__, schema)["properties"]
        for key, meaning in _documentation(path, owner).items():
            properties[key] = {"description": meaning, **_or_interpolation(properties[key])}
    if dialect == GUIDE:
        _add_short_paths(schema["$defs"])
    schema["properties"]["defaults"] = {
        "type": "array",
        "description": "Configs that this one builds on, in order; `_self_` stands for this file.",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": _SCHEMA_TITLES[dialect]}


def _or_interpolation(value: dict[str, Any]) -> dict[str, Any]:
    """Any value may also be written as `${another.key}`."""
    notes: dict[str, Any] = {key: value[key] for key in ("title", "default") if key in value}
    rule = {key: item for key, item in value.items() if key not in (*notes, "description")}
    return {**notes, "anyOf": [*rule.pop("anyOf", []), *([rule] if rule else []), _INTERPOLATION]}


def _add_short_paths(definitions: dict[str, Any]) -> None:
    """The guide's `training.optimizer: adamw` and `training.optimizer_kwargs`, and the same for the scheduler."""
    training = definitions["TrainingConfig"]["properties"]
    for name, owner in (("optimizer", "GuideOptimizerConfig"), ("scheduler", "GuideSchedulerConfig")):
        properties = definitions[owner]["properties"]
        training[name]["anyOf"] += properties[name]["anyOf"]
        training[f"{name}_kwargs"] = properties[f"{name}_kwargs"]


def schema_files() -> dict[str, str]:
    """Name and content of the schema files that the shipped YAML files point at."""
    schemas = {dialect: json_schema(dialect) for dialect in SCHEMAS}
    # The files of the group `model` hold what stands under `model`.
    schemas["model"] = {"$ref": f"{GUIDE}.json#/$defs/ModelConfig"}
    return {f"{name}.json": json.dumps(schema, indent=2) + "\n" for name, schema in schemas.items()}


def main() -> None:
    """Write the page and the JSON schemas of a checkout."""
    configs = shipped_folder()
    (configs.parent / "docs" / PAGE).write_text(reference(), encoding="utf-8")
    for name, text in schema_files().items():
        (configs / "schema" / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
