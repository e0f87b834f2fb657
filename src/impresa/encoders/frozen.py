"""The part of a tower that training does not change: its output is a row of numbers that can be kept.

Letters of shapes: B batch, F numbers of a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import takewhile
from math import prod
from typing import Any

import torch
from torch import Tensor

from impresa.encoders.output import EncoderOutput
from impresa.encoders.tower import Stage, Tower, Use

PRECISION = torch.float16
"""Of kept rows; 11 bits, where bfloat16 has 8."""


@dataclass
class FrozenPart:
    """The longest beginning of a tower's stages that has nothing to train. It can be pickled and copied with the tower.

    What training does behind it starts from rows: `finish(encode(x))` is the tower's output but for the rounding.
    """

    tower: Tower
    use: Use
    length: int
    """Stages in it."""
    kind: type
    """Of what the last of them returns: a tensor, or a dataclass of tensors."""
    shapes: dict[str, torch.Size]
    """Of the tensors in it, by field, each without B."""

    @property
    def row_length(self) -> int:
        """F."""
        return sum(map(prod, self.shapes.values()))

    @torch.no_grad()
    def encode(self, *inputs: Tensor) -> Tensor:
        """(B, F) in `PRECISION` of a batch of the tower's inputs."""
        found = _run(self.tower.stages(self.use)[: self.length], inputs)
        return torch.cat([part.flatten(1) for part in _parts(found).values()], dim=1).to(PRECISION)

    def finish(self, rows: Tensor) -> EncoderOutput:
        """The tower's output for rows (B, F), with gradients for what is trained."""
        rows = rows.to(next(self.tower.parameters()).dtype)
        pieces = rows.split([prod(shape) for shape in self.shapes.values()], dim=1)
        parts = {
            name: piece.unflatten(1, shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }
        value = parts[""] if self.kind is Tensor else self.kind(**parts)
        return _run(self.tower.stages(self.use)[self.length :], (value,))

    def modules(self) -> list[torch.nn.Module]:
        """The modules whose weights and buffers decide the rows."""
        return [module for modules, _ in self.tower.stages(self.use)[: self.length] for module in modules]


def frozen_part(tower: Tower, use: Use, *inputs: Tensor) -> FrozenPart:
    """The frozen part of a tower whose backbone is frozen.

    Args:
        tower: in the mode of training.
        use: what the model reads of it.
        inputs: a batch of any content; the shapes of rows are seen from what becomes of it.
    """
    stages = tower.stages(use)
    length = len(list(takewhile(lambda stage: not _is_trained(stage[0]), stages)))
    assert length, "the config has made sure that the backbone is frozen"
    with torch.no_grad():
        found = _run(stages[:length], inputs)
    shapes = {name: part.shape[1:] for name, part in _parts(found).items()}
    return FrozenPart(tower, use, length, Tensor if isinstance(found, Tensor) else type(found), shapes)


def _is_trained(modules: Iterable[torch.nn.Module]) -> bool:
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())


def _run(stages: Sequence[Stage], inputs: tuple[Any, ...]) -> Any:
    for _, compute in stages:
        inputs = (compute(*inputs),)
    return inputs[0]


def _parts(value: Any) -> dict[str, Tensor]:
    """The tensors of a stage's result by field; images have no masks."""
    if isinstance(value, Tensor):
        return {"": value}
    found = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: part for name, part in found.items() if part is not None}
