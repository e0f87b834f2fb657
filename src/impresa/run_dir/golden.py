"""The golden file of a run: inputs as they came, and the outputs that the model had for them at the end of training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import safe_open
from torch import Tensor, uint8

from impresa.json_files import first_fault

MAX_BYTES = 1 << 30
"""Of a file; four of the largest images take 0.8 GiB."""
MAX_ROWS = 1_000
MAX_SOUND = 3_600 * 768_000
"""Samples of an hour at the highest rate."""
_adapter = cache(TypeAdapter)


def packed(values: Sequence[str] | Sequence[int]) -> str:
    """Values as the metadata of a file hold them."""
    return json.dumps(list(values))


class Golden:
    """The file's tensors by name, and its metadata. Whatever is not as `save_golden` writes it is a ValueError, whose
    message is the reason alone."""

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        self._tensors = tensors
        self._metadata = metadata

    @classmethod
    def read(cls, path: Path) -> Golden:
        """The content of a file. Raises OSError and SafetensorError beside ValueError."""
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
        with safe_open(path, framework="pt") as file:
            return cls({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118

    @property
    def device(self) -> str:
        """The kind of device that the run was finished on."""
        return self._word("device")

    def outputs(self, name: str, width: int) -> Tensor:
        """(N, width) floats."""
        tensor = self._tensor(name)
        if tensor.ndim != 2 or tensor.shape[1] != width or len(tensor) > MAX_ROWS or not tensor.is_floating_point():
            raise _other_shape(name, tensor, f"at most {MAX_ROWS} rows of {width} floats")
        return tensor

    def images(self, number: int, size: int) -> list[Tensor]:
        """(3, h, w) uint8 of each of the images, for a tower that reads `size` pixels a side."""
        images = [self._tensor(f"image_{i}") for i in range(number)]
        for i, image in enumerate(images):
            sides = image.shape[1:]
            if image.ndim != 3 or len(image) != 3 or not all(1 <= side <= 2 * size for side in sides):
                raise _other_shape(f"image_{i}", image, f"three colours of 1 to {2 * size} pixels a side")
            if image.dtype != uint8:
                raise _other_shape(f"image_{i}", image, "uint8")
        return images

    def texts(self, name: str, number: int) -> list[str]:
        """The texts of one kind."""
        return self._list(name, list[str], number)

    def counts(self, name: str, number: int, otherwise: int) -> list[int]:
        """How many of something each of the inputs has; `otherwise` each in a file that does not say so."""
        if name not in self._metadata:
            return [otherwise] * number
        counts: list[int] = self._list(name, list[int], number)
        if not all(0 <= count <= MAX_ROWS for count in counts):
            raise ValueError(f"{name}: not all are from 0 to {MAX_ROWS}")
        return counts

    def sounds(self, number: int) -> list[tuple[Tensor, int]]:
        """(S,) floats of each of the sounds, and how many there are to a second."""
        rates_hz, sounds = self._list("audio_rates_hz", list[int], number), []
        for i, rate_hz in enumerate(rates_hz):
            sound = self._tensor(f"audio_{i}")
            if sound.ndim != 1 or not 1 <= len(sound) <= MAX_SOUND or not sound.is_floating_point():
                raise _other_shape(f"audio_{i}", sound, f"1 to {MAX_SOUND} floats")
            sounds.append((sound, rate_hz))
        return sounds

    def _tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise ValueError(f"it has no {name}")
        return self._tensors[name]

    def _word(self, name: str) -> str:
        if name not in self._metadata:
            raise ValueError(f"its metadata have no {name}")
        return self._metadata[name]

    def _list(self, name: str, kind: Any, number: int) -> Any:
        try:
            values = _adapter(kind).validate_json(self._word(name), strict=True)
        except ValidationError as error:
            raise ValueError(f"{name}: {first_fault(error)}") from error
        if len(values) != number:
            raise ValueError(f"{name}: {len(values)}, and {number} outputs")
        return values


def _other_shape(name: str, tensor: Tensor, wanted: str) -> ValueError:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return ValueError(f"{name}: shape {tuple(tensor.shape)} of {dtype}, and no {wanted}")
