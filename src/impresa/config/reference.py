"""The generated page and files about the configuration; `python -m impresa.config.reference` writes them anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from impresa.config.describe import describe, documentation, hints, section
from impresa.config.dialects import guide_names
from impresa.config.experiment import DecoderConfig, EncoderConfig, ExperimentConfig
from impresa.config.memory_vlm import LABELS, MemoryVLMConfig
from impresa.config.paths import shipped_folder
from impresa.config.schema import schema_files
from impresa.config.tree import to_tree

PAGE = "config-reference.md"
_INTRODUCTION = """\
# Configuration reference

<!-- Generated from the config classes by `python -m impresa.config.reference`; do not edit. -->

A config is written in one of two dialects; the keys at its top level tell which. The *experiment* dialect is what the
engine reads. The *Memory-VLM* dialect (`model`, `training`, `project`) is translated into it, key by key.
`impresa config show NAME` prints what a config comes to, `impresa config list` the configs that are shipped. Every key
can be set in YAML and on the command line, as `optimization.lr=1e-4` or `--optimization.lr 1e-4`.
"""
_GUIDE_INTRODUCTION = """\
## The Memory-VLM dialect

`training.optimizer=adamw`, `training.optimizer_kwargs.*`, `training.scheduler=cosine` and
`training.scheduler_kwargs.*` are short for the full keys below. A *label* names things and changes no number.
"""


def reference() -> str:
    """The page docs/config-reference.md."""
    optional = dataclasses.replace(
        ExperimentConfig(), audio_encoder=EncoderConfig(backbone="spectrogram"), decoder=DecoderConfig()
    )
    engine = _sections(optional, "the experiment dialect", {})
    guide = _sections(MemoryVLMConfig(), "the Memory-VLM dialect", {name: key for key, name in guide_names().items()})
    parts = [_INTRODUCTION, "## The experiment dialect\n", *engine, _GUIDE_INTRODUCTION, *guide]
    return "\n".join(parts)


def _sections(root: Any, title: str, sets: dict[str, str]) -> Iterator[str]:
    """One table for each config class, under the paths where it is used."""
    places: dict[type, dict[str, Any]] = {}
    for path, part in _parts(root):
        places.setdefault(type(part), {})[path] = part
    for schema, uses in places.items():
        yield f"### {', '.join(f'`{path}`' for path in uses) if '' not in uses else f'Top level of {title}'}\n"
        yield f"{' '.join((schema.__doc__ or '').split())}\n"
        first, *others = uses.items()
        yield from _other_defaults(first, others)
        yield _table(*first, sets)


def _parts(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    yield prefix.rstrip("."), config
    schema: type = type(config)
    for name in hints(schema):
        if dataclasses.is_dataclass(value := getattr(config, name)):
            yield from _parts(value, f"{prefix}{name}.")


def _other_defaults(first: tuple[str, Any], others: list[tuple[str, Any]]) -> Iterator[str]:
    for path, part in others:
        for key, value in to_tree(part).items():
            if value != to_tree(first[1])[key] and not isinstance(value, dict):
                yield f"The default of `{path}.{key}` is {_code(value)}.\n"


def _table(path: str, part: Any, sets: dict[str, str]) -> str:
    schema: type = type(part)
    defaults = to_tree(part)
    prefix = f"{path}." if path else ""
    rows = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for name, annotation in hints(schema).items():
        nested = section(annotation) is not None
        value = f"see `{prefix}{name}`" if nested else describe(annotation)
        default = "" if nested and getattr(schema(), name) is not None else _code(None if nested else defaults[name])
        rows.append(f"| `{name}` | {value} | {default} | {documentation(schema)[name]}{_note(prefix + name, sets)} |")
    return "\n".join(rows) + "\n"


def _note(key: str, sets: dict[str, str]) -> str:
    """What a key of the guide sets in the engine, and whether it is a label."""
    if key not in sets:
        return ""
    return f" {'Label; sets' if key in LABELS else 'Sets'} `{sets[key]}`."


def _code(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return f"`{str(value).lower()}`".replace("none", "null")
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def main() -> None:
    """Write the page and the JSON schemas of a checkout."""
    configs = shipped_folder()
    (configs.parent / "docs" / PAGE).write_text(reference(), encoding="utf-8")
    for name, text in schema_files().items():
        (configs / "schema" / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
