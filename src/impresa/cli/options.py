"""Options that several verbs share: types of numbers, and `--device`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from typing import Any

_MOST = 2**63 - 1


def _number(kind: type, low: float, high: float, what: str) -> Callable[[str], Any]:
    """A type for argparse: reads a number, and says what it takes where the text is none or out of bounds."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not {what}")
        return value

    return read


count = _number(int, 1, _MOST, "a whole number from 1")
count_or_zero = _number(int, 0, _MOST, "a whole number from 0")
pixels = _number(int, 1, 4096, "a whole number from 1 to 4096")
"""The side of a picture that is drawn."""
fraction = _number(float, 0, 1, "a number from 0 to 1")
non_negative = _number(float, 0, sys.float_info.max, "a number from 0")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")


def checked_device(name: str | None) -> str | None:
    """The device, once a tensor has been made on it."""
    from impresa.tasks.devices import usable_device

    usable_device(name, "--device")
    return name
