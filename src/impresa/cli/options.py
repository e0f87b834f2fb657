"""Options that several verbs share: numbers, as types for argparse, and `--device`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable

from impresa.errors import ConfigError

_MOST = 2**63 - 1


def count(text: str) -> int:
    return int(_number(text, int, 1, _MOST, "a whole number from 1"))


def count_or_zero(text: str) -> int:
    return int(_number(text, int, 0, _MOST, "a whole number from 0"))


def fraction(text: str) -> float:
    return _number(text, float, 0, 1, "a number from 0 to 1")


def non_negative(text: str) -> float:
    return _number(text, float, 0, sys.float_info.max, "a number from 0")


def _number(text: str, kind: Callable[[str], float], low: float, high: float, what: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text} is not {what}")
    return value


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")


def checked_device(name: str | None) -> str | None:
    """The device, once a tensor has been made on it."""
    import torch

    try:
        if torch.zeros(1, device=name).is_meta:
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device: {name} cannot be used here ({reason}); give cpu, or leave it out") from error
    return name
