"""YAML as configs are written in it: checked text, and scalars that mean the same as on the command line.

YAML 1.1 takes `0042` for 34, `1:30` for 90, `0b11` for 3 and `on` for true, and takes `5e-4` for text. Here a plain
scalar is what Hydra's grammar of overrides makes of it: a decimal number, `true`, `false` or `null`, else text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from impresa.errors import ConfigError

MAX_BYTES = 256 * 1024
_MAX_VALUES = 20_000
_MAX_DEPTH = 40
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {f"{_TAG}{kind}" for kind in ("str", "map", "seq", "merge")}
_WHOLE = r"(?:0|[1-9](?:_?[0-9])*)"
_POINT = rf"(?:{_WHOLE}\.|{_WHOLE}?\.[0-9](?:_?[0-9])*)"
_SCALARS = {
    "null": r"~|(?i:null)|",
    "bool": r"(?i:true|false)",
    "int": rf"[-+]?{_WHOLE}",
    "float": rf"[-+]?(?:{_POINT}|(?:{_POINT}|{_WHOLE})[eE][-+]?[0-9](?:_?[0-9])*)",
    "merge": "<<",
}
"""Kind of value -> how it is written."""
_INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{")


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != f"{_TAG}merge":
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value}", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {None: [(_TAG + kind, re.compile(rf"(?:{how})\Z")) for kind, how in _SCALARS.items()]}


def read_scalar(text: str) -> Any:
    """The value of a plain scalar of YAML."""
    loader = _Loader("")
    return loader.construct_object(yaml.ScalarNode(loader.resolve(yaml.ScalarNode, text, (True, False)), text))


def has_interpolation(value: Any) -> bool:
    """True if some text in a tree holds `${` that is not written out as `\\${`."""
    if isinstance(value, dict):
        return any(has_interpolation(part) for item in value.items() for part in item)
    if isinstance(value, list):
        return any(map(has_interpolation, value))
    return isinstance(value, str) and _INTERPOLATION.search(value) is not None


def read_mapping(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file, each `${...}` still text; an empty file is an empty mapping.

    Raises:
        ConfigError: the file cannot be read or is no plain mapping.
    """
    text = _read_text(path)
    try:
        _check(text, path)
        return yaml.load(text, Loader=_Loader) or {}
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_broken_line(error, path)) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: is no YAML that can be used ({one_line(error)}); fix it there") from None


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise ConfigError(f"{path}: is a directory; name a YAML file")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: is larger than {MAX_BYTES // 1024} KiB; a config is a short text")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None


def _check(text: str, path: Path) -> None:
    """Refuse tags that build objects, aliases that grow or recur, deep nesting and a second document."""
    open_nodes: list[tuple[str | None, int]] = []  # of each open collection: its anchor, and the values before it
    sizes: dict[str | None, int] = {}  # values below each anchor, aliases expanded
    total = 0
    event: Any
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        tag, fault = getattr(event, "tag", None), ""
        if isinstance(event, yaml.NodeEvent) and not open_nodes and not isinstance(event, yaml.MappingStartEvent):
            fault = "is no mapping of keys; write key: value"
        elif tag is not None and tag not in _PLAIN_TAGS:
            fault = f"the tag {tag!r} is not for a config; write a plain value"
        elif isinstance(event, yaml.DocumentStartEvent) and total:
            fault = "a second document begins; a config is one document"
        match event:
            case yaml.AliasEvent(anchor=name):
                total += sizes.get(name, 1)
                if any(name == open_name for open_name, _ in open_nodes):
                    fault = f"*{name} stands inside itself; write the value out"
            case yaml.ScalarEvent(anchor=name):
                total += 1
                sizes[name] = 1
            case yaml.CollectionStartEvent(anchor=name):
                open_nodes.append((name, total))
                total += 1
            case yaml.CollectionEndEvent():
                name, before = open_nodes.pop()
                sizes[name] = total - before
        if len(open_nodes) > _MAX_DEPTH:
            fault = f"is nested more than {_MAX_DEPTH} deep; a config is flatter than that"
        elif total > _MAX_VALUES:
            fault = f"holds more than {_MAX_VALUES} values, aliases expanded; a config is a short text"
        if fault:
            raise ConfigError(f"{path}:{event.start_mark.line + 1}:{event.start_mark.column + 1}: {fault}")


def _broken_line(error: yaml.MarkedYAMLError, path: Path) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
    problem = one_line(error.problem or "cannot be parsed")
    if "duplicate key" in problem:
        return f"{where}: key {problem.rpartition(' ')[2]} is given twice; keep one"
    kind = one_line(f"broken YAML {error.context or ''}")
    return f"{where}: {kind}: {problem}; fix it there"


def one_line(text: object) -> str:
    """`text` with every run of white space as one space."""
    return " ".join(str(text).split())
