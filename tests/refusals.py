"""What the validator says of a config."""

from __future__ import annotations

from typing import Any

import pytest

from impresa.config.tree import merge, nested
from impresa.config.validate import experiment_from_tree
from impresa.errors import ConfigError


def lines_of(tree: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        experiment_from_tree(tree)
    assert str(caught.value) == "\n".join(caught.value.lines)
    return list(caught.value.lines)


def told(tree: Any) -> tuple[str, ...]:
    """The lines of a refusal; none if there is none."""
    try:
        experiment_from_tree(tree)
    except ConfigError as error:
        return error.lines
    return ()


def only_line(*settings: tuple[str, Any]) -> str:
    tree: dict[str, Any] = {}
    for key, value in settings:
        tree = merge(tree, nested(key, value))
    (line,) = lines_of(tree)
    return line
