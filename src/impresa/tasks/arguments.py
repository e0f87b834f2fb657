"""Arguments of the public methods: one input or several, numbers, texts, embeddings.

A fault is one line that begins with the argument, and with the place in the list where there is one: `images[3]: ...`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from impresa.data.text import is_unicode
from impresa.errors import DataError, ImpresaError

Vectors = Tensor | NDArray[Any] | Sequence[Any]
"""Embeddings: (N, E) or (E,) as a tensor or an array, or a list of (E,)."""


class Named(NamedTuple):
    """An input and what it is called in messages: the argument, with its place in the list."""

    name: str
    value: Any


@dataclass(frozen=True)
class Inputs:
    """The inputs that an argument stands for."""

    items: list[Named]
    is_one: bool
    """The argument is an input itself, not a list of them, and so is the result."""


def inputs_of(argument: str, inputs: Any, is_one: Callable[[Any], bool]) -> Inputs:
    """The input or inputs that a user gives as `argument`.

    Args:
        argument: its name.
        inputs: an input, or an ordered collection of them.
        is_one: true for an input.
    """
    if is_one(inputs):
        return Inputs([Named(argument, inputs)], is_one=True)
    has_order = isinstance(inputs, Iterable) and not isinstance(inputs, Mapping | Set | str | bytes)
    if not has_order or getattr(inputs, "ndim", 1) == 0:
        raise DataError(f"{argument}: got {kind(inputs)}; give one, or a list of them")
    return Inputs([Named(f"{argument}[{i}]", item) for i, item in enumerate(inputs)], is_one=False)


def texts_of(argument: str, texts: Any) -> Inputs:
    """The text or texts that a user gives as `argument`, each valid Unicode."""
    inputs = inputs_of(argument, texts, lambda value: isinstance(value, str | bytes))
    return Inputs([text_of(*named) for named in inputs.items], inputs.is_one)


def text_of(argument: str, text: Any) -> Named:
    """A single text that a user gives as `argument`."""
    if not isinstance(text, str):
        raise DataError(f"{argument}: got {kind(text)}; give a string")
    if not is_unicode(text):
        raise DataError(f"{argument}: is not UTF-8 text; write it in that encoding")
    return Named(argument, text)


def whole_number(argument: str, value: Any, low: int = 1) -> int:
    """A whole number from `low`, of any type that stands for one; anything else is a `DataError`."""
    number = as_whole(value)
    if number is None or number < low:
        raise DataError(f"{argument}: {shown(value)} is not a whole number from {low}; give one")
    return number


def flag(argument: str, value: Any) -> bool:
    """True or false; anything else is a `DataError`."""
    if not isinstance(value, bool | np.bool_):
        raise DataError(f"{argument}: {shown(value)} is neither True nor False; give one of them")
    return bool(value)


def one_of(argument: str, value: Any, words: Sequence[str]) -> str:
    """One of these words; anything else is a `DataError`."""
    if not isinstance(value, str) or value not in words:
        raise DataError(f"{argument}: {shown(value)} is none of {', '.join(words)}; give one of them")
    return value


def vectors_of(argument: str, vectors: Vectors) -> Tensor:
    """Embeddings as rows, (N, E) float32 on the device where the first of them is.

    Args:
        argument: its name.
        vectors: the embeddings; an empty list is (0, 0).

    Raises:
        DataError: they are no numbers of such a shape, or not finite.
    """
    if isinstance(vectors, Sequence) and not isinstance(vectors, str | bytes):
        if not all(is_number(number) for number in vectors):
            return _stacked([vectors_of(f"{argument}[{i}]", vector) for i, vector in enumerate(vectors)], argument)
        if not vectors:
            return torch.zeros(0, 0)
    with naming(argument):
        numbers = _floats(vectors)
        if numbers.ndim not in (1, 2):
            raise DataError(f"embeddings of shape {tuple(numbers.shape)}; give (N, E), or (E,) for a single one")
    rows = torch.atleast_2d(numbers)
    good = rows.isfinite().all(dim=1)
    if not good.all():
        place = f"[{int((~good).nonzero()[0])}]" if numbers.ndim == 2 else ""
        raise DataError(f"{argument}{place}: holds numbers that are not finite; embed it again")
    return rows


def of_one_width(names: tuple[str, str], a: Vectors, b: Vectors) -> tuple[Tensor, Tensor]:
    """Two sets of embeddings, (N, E) and (M, E) on the device of the first; see `vectors_of`.

    Raises:
        DataError: an argument holds no embeddings, or the two differ in width.
    """
    rows, others = vectors_of(names[0], a), vectors_of(names[1], b)
    if len(rows) and len(others) and rows.shape[1] != others.shape[1]:
        fault = f"embeddings of {others.shape[1]} numbers, and those of {names[0]} have {rows.shape[1]}"
        raise DataError(f"{names[1]}: {fault}; embed both with the same model and `dim`")
    return rows, others.to(rows.device)


def _stacked(rows: list[Tensor], argument: str) -> Tensor:
    for i, row in enumerate(rows):
        if row.shape != (1, rows[0].shape[1]):
            fault = f"{argument}[{i}]: {row.shape[0]} embeddings of {row.shape[1]} numbers"
            raise DataError(f"{fault}; give one at each place of the list, all of the same length")
    return torch.cat([row.to(rows[0].device) for row in rows])


def _floats(numbers: Any) -> Tensor:
    if isinstance(numbers, Tensor):
        if numbers.dtype is torch.bool or numbers.is_complex() or not has_values(numbers):
            raise DataError(f"got a tensor of {numbers.dtype}; give embeddings, which are floats")
        _refuse_quantized(numbers.dtype in (torch.int8, torch.uint8))
        return numbers.float()
    array = np.asarray(numbers)
    _refuse_quantized(array.dtype in (np.int8, np.uint8))
    if array.dtype.kind not in "fiu":
        raise DataError(f"got {kind(numbers)} of {array.dtype}; give embeddings, an array or a tensor of floats")
    return torch.from_numpy(array.astype(np.float32))


def _refuse_quantized(is_quantized: bool) -> None:
    """Refuse numbers of another `precision`: they are counted from another zero, or are eight in one."""
    if is_quantized:
        raise DataError("holds quantised embeddings, whose cosines are other ones; embed with precision float32")


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Let messages of the block begin with the name of the input."""
    try:
        yield
    except ImpresaError as error:
        raise type(error)(*(f"{name}: {' '.join(line.split())}" for line in error.lines)) from error


def has_values(tensor: Tensor) -> bool:
    """False for a tensor that is sparse, quantised or without content."""
    return tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized)


def is_number(value: Any) -> bool:
    """True for a number of Python, numpy or torch."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 0
    return isinstance(value, int | float | np.number)


def as_whole(value: Any) -> int | None:
    """The whole number that a value stands for: an int, numpy's or torch's, or a whole float; None if there is none."""
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, float | np.floating):
        return int(value) if math.isfinite(value) and value == int(value) else None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def kind(value: Any) -> str:
    """The name of a value's type."""
    return type(value).__name__


def shown(value: Any) -> str:
    """A value on one short line."""
    return f"{' '.join(repr(value).split()):.40}"
