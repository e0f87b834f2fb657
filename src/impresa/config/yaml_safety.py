"""Reading YAML files of strangers: one mapping, no objects, no bombs; a fault is one line with file, line and column.

The events of the parser are looked at before OmegaConf's loader sees the text, because that loader builds some Python
objects from tags and expands aliases. Plain PyYAML is not used for values: it reads `5e-4` as a string.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from impresa.errors import ConfigError

MAX_BYTES = 256 * 1024
MAX_NODES = 20_000
MAX_DEPTH = 40
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq", "merge")}


def read_yaml(path: Path) -> DictConfig:
    """The mapping in a YAML file, `${...}` not yet resolved; an empty file is an empty mapping.

    Raises:
        ConfigError: when the file cannot be read or is no plain mapping.
    """
    text = _read_text(path)
    try:
        _check_events(text, path)
        config = OmegaConf.load(io.StringIO(text))
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_marked_line(error, path)) from None
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        raise ConfigError(f"{path}: is no YAML that can be used ({one_line(error)}); mend it there") from None
    return cast(DictConfig, config)


def one_line(error: Exception) -> str:
    """What an exception says, on one line."""
    return " ".join(str(error).split())


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise ConfigError(f"{path}: is a directory; name a YAML file")
    try:
        raw = path.read_bytes() if path.stat().st_size <= MAX_BYTES else None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    if raw is None:
        raise ConfigError(f"{path}: is larger than {MAX_BYTES // 1024} KiB; a config is a short text")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None


def _marked_line(error: yaml.MarkedYAMLError, path: Path) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
    problem = " ".join((error.problem or "cannot be parsed").split())
    if "duplicate key" in problem:
        return f"{place}: key {problem.rpartition(' ')[2]} is given twice; keep one"
    context = f" {' '.join(error.context.split())}" if error.context else ""
    return f"{place}: broken YAML{context}: {problem}; mend it there"


@dataclass
class _Size:
    """Nodes below an open collection, aliases counted as what they stand for."""

    anchor: str | None
    nodes: int = 1


@dataclass
class _Walk:
    path: Path
    open: list[_Size] = field(default_factory=list)
    anchors: dict[str, int] = field(default_factory=dict)
    documents: int = 0

    def refuse(self, event: Any, text: str) -> ConfigError:
        mark = event.start_mark
        return ConfigError(f"{self.path}:{mark.line + 1}:{mark.column + 1}: {text}")

    def enter(self, event: Any) -> None:
        self.open.append(_Size(event.anchor))
        if len(self.open) > MAX_DEPTH:
            raise self.refuse(event, f"is nested more than {MAX_DEPTH} deep; a config is flatter than that")

    def leave(self, event: Any) -> None:
        size = self.open.pop()
        self.add(event, size.nodes, size.anchor)

    def add(self, event: Any, nodes: int, anchor: str | None) -> None:
        if anchor is not None:
            self.anchors[anchor] = nodes
        if self.open:
            self.open[-1].nodes += nodes
        if nodes > MAX_NODES or (self.open and self.open[-1].nodes > MAX_NODES):
            raise self.refuse(event, f"holds more than {MAX_NODES} values, aliases expanded; a config is a short text")

    def alias(self, event: Any) -> None:
        if any(size.anchor == event.anchor for size in self.open):
            raise self.refuse(event, f"*{event.anchor} stands inside itself; write the value out")
        self.add(event, self.anchors.get(event.anchor, 1), None)


def _check_events(text: str, path: Path) -> None:
    """Refuse tags that build objects, aliases that grow or recur, deep nesting and a second document."""
    walk = _Walk(path)
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.NodeEvent) and not walk.open and not isinstance(event, yaml.MappingStartEvent):
            raise walk.refuse(event, "is no mapping of keys; write key: value")
        tag = getattr(event, "tag", None)
        if tag is not None and tag not in _PLAIN_TAGS:
            raise walk.refuse(event, f"the tag {tag!r} is not for a config; write a plain value")
        if isinstance(event, yaml.DocumentStartEvent):
            walk.documents += 1
            if walk.documents > 1:
                raise walk.refuse(event, "a second document begins; a config is one document")
        elif isinstance(event, yaml.CollectionStartEvent):
            walk.enter(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            walk.leave(event)
        elif isinstance(event, yaml.ScalarEvent):
            walk.add(event, 1, event.anchor)
        elif isinstance(event, yaml.AliasEvent):
            walk.alias(event)
