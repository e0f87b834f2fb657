"""What the annotations of the config classes say, in words: for error lines and for the reference page."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import types
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import StringConstraints

from impresa.config.faults import listed

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


@cache
def hints(schema: type) -> dict[str, Any]:
    """Annotation of each field of a config class, bounds included."""
    annotations = get_type_hints(schema, include_extras=True)
    return {field.name: annotations[field.name] for field in dataclasses.fields(schema)}


@cache
def documentation(schema: type) -> dict[str, str]:
    """The docstring under each field of a config class and of those that it inherits from, on one line."""
    docs: dict[str, str] = {}
    for owner in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        definition = next(
            node for node in ast.walk(ast.parse(inspect.getsource(owner))) if isinstance(node, ast.ClassDef)
        )
        for statement, following in itertools.pairwise(definition.body):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    docs[name] = " ".join(text.split())
    return docs


def section(annotation: Any) -> Any:
    """The config class that an annotation holds (`X` or `X | None`), or None for a scalar or a list."""
    options = get_args(annotation) if is_union(annotation) else (annotation,)
    return next((option for option in options if dataclasses.is_dataclass(option)), None)


def is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def locate(schema: type, location: Sequence[int | str]) -> tuple[str, Any]:
    """The dotted path and the annotation of the field where a validation error lies.

    `location` may lead on into a list or name a branch of a union; the field is what a user can mend.
    """
    keys: list[str] = []
    annotation: Any = schema
    for part in location:
        owner = section(annotation)
        if owner is None or part not in hints(owner):
            break
        keys.append(str(part))
        annotation = hints(owner)[str(part)]
    return ".".join(keys), annotation


def known_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Dotted paths of all leaves of a config class, optional parts included."""
    for name, annotation in hints(schema).items():
        owner = section(annotation)
        if owner is None:
            yield f"{prefix}{name}"
        else:
            yield from known_keys(owner, f"{prefix}{name}.")


def config_classes(schema: type) -> Iterator[type]:
    """A config class and all those below it, each once."""
    found = dict.fromkeys([schema])
    for annotation in hints(schema).values():
        if owner := section(annotation):
            found |= dict.fromkeys(config_classes(owner))
    yield from found


def choices(annotation: Any) -> list[str]:
    """The words that an annotation allows."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for part in get_args(annotation) for word in choices(part)] if is_union(annotation) else []


def describe(annotation: Any) -> str:
    """What a value of this annotation must be, as the end of the sentence "it must be ..."."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if is_union(annotation):
        return " or ".join(describe(part) for part in sorted(arguments, key=_words_first))
    if origin is Literal:
        return listed(arguments)
    if origin is tuple:
        return _describe_list(arguments)
    if origin is Annotated:
        return _KINDS[arguments[0]] + _describe_bounds(arguments[1:])
    return _KINDS.get(annotation, "a mapping of keys")


def _words_first(annotation: Any) -> bool:
    return get_origin(annotation) is not Literal


def _describe_list(arguments: tuple[Any, ...]) -> str:
    if arguments[-1] is Ellipsis:
        return f"a list, each item {describe(arguments[0])}"
    return f"a list of {len(arguments)}, each {describe(arguments[0])}"


def _describe_bounds(metadata: tuple[Any, ...]) -> str:
    words = []
    for rule in metadata:
        if isinstance(rule, StringConstraints) and rule.min_length:
            words.append("that is not empty")
        words += [f"at least {rule.ge}"] if isinstance(rule, Ge) else []
        words += [f"above {rule.gt}"] if isinstance(rule, Gt) else []
        words += [f"at most {rule.le}"] if isinstance(rule, Le) else []
        words += [f"below {rule.lt}"] if isinstance(rule, Lt) else []
    return " " + " and ".join(words) if words else ""
