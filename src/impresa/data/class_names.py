"""Names of classes: what the data's labels are called in prompts and results.

They are `dataset.class_names`, or else those that the `datasets` library keeps in the schema of a parquet file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from impresa.config.dataset import DatasetConfig
from impresa.config.paths import expanded
from impresa.data.disk import read_regular
from impresa.data.text import is_blank
from impresa.errors import DataError
from impresa.json_files import parse_json

_KEY = "dataset.class_names"
_MAX_FILE_BYTES = 16 << 20
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_TRUTH = {"False": "0", "True": "1"}
_UNLABELLED = "-1"
"""The label that `datasets` gives where there is none."""

_NO_NAMES = (".yaml", ".yml", ".csv", ".tsv", ".jsonl")
"""Suffixes of files whose lines hold more than names."""

ClassNames = Mapping[str, str]
"""Name by label; the labels of a list of names are its positions, from 0."""


def class_name(label: str | None, names: ClassNames) -> str | None:
    """The name of a label, which may also be a name already; without any names the label itself.

    Raises:
        ValueError: there are names, but none for this label; the message is the reason alone.
    """
    if label is None or not names:
        return label
    key = str(int(label)) if _INTEGER.fullmatch(label) else label
    if key not in names:
        key = _TRUTH.get(key, key)
    if key in names:
        return names[key]
    if key == _UNLABELLED:
        return None
    if label in names.values():
        return label
    raise ValueError(f"the label {label!r:.60} is none of the {len(names)} class names; set {_KEY}")


def configured_names(config: DatasetConfig) -> ClassNames:
    """The names of `dataset.class_names`, empty without it.

    Raises:
        DataError: the file that it names cannot be read, or holds no names.
    """
    if config.class_names is None:
        return {}
    if not isinstance(config.class_names, str):
        return _numbered(config.class_names)
    path = expanded(config.class_names)
    fix = "give one name per line, or a JSON list of names or object of names by label"
    if path.suffix.lower() in _NO_NAMES:
        raise DataError(f"{_KEY}: {path}: is no text file and no JSON by its name; {fix}")
    try:
        text = read_regular(path, _MAX_FILE_BYTES).decode("utf-8-sig")
        is_json = path.suffix.lower() == ".json"
        names = _from_json(parse_json(text)) if is_json else _numbered(text.rstrip().splitlines())
    except OSError as error:
        raise DataError(f"{_KEY}: {path}: {error.strerror or error}; {fix}") from error
    except ValueError as error:
        raise DataError(f"{_KEY}: {path}: {error}; {fix}") from error
    if not names or any(map(is_blank, names.values())):
        raise DataError(f"{_KEY}: {path}: holds {'an empty name' if names else 'no names'}; {fix}")
    return names


def names_in_schema(metadata: Mapping[bytes, bytes] | None, column: str) -> ClassNames:
    """The names of a column of type `ClassLabel` in the metadata of a parquet file's schema; empty without them."""
    try:
        feature = parse_json((metadata or {})[b"huggingface"])["info"]["features"][column]
        return _from_json(feature["names"]) if feature["_type"] == "ClassLabel" else {}
    except (KeyError, TypeError, ValueError):
        return {}


def _from_json(found: Any) -> ClassNames:
    names = _numbered(found) if isinstance(found, list) else found
    if not (isinstance(names, dict) and all(isinstance(name, str) for name in names.values())):
        raise ValueError("is no list of names, and no object of names by label")
    return names


def _numbered(names: Iterable[str]) -> dict[str, str]:
    return {str(number): name.strip() if isinstance(name, str) else name for number, name in enumerate(names)}
