"""Numbers on the command line: types for argparse that say what they take."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable

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
