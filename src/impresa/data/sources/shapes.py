"""The embedded data set: procedural scenes, the same on every machine, nothing downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from impresa.config.experiment import ShapesConfig
from impresa.data.audio import Clip
from impresa.data.dialogue import Dialogue
from impresa.data.sample import Sample
from impresa.data.shapes.captions import describe
from impresa.data.shapes.draws import Draws
from impresa.data.shapes.questions import ask_about
from impresa.data.shapes.rendering import render
from impresa.data.shapes.scenes import Scene, Split, draw_scene
from impresa.data.shapes.sounds import RATE_HZ, synthesize

_MOST_BYTES_KEPT = 256 << 20
_BYTES_PER_PIXEL = 4  # as Pillow stores RGB


class ShapesSource:
    """One split of the scenes, drawn on demand at `image_size_px`.

    `train` and `val` show the same pairs of colour and shape in different scenes; `test` shows only pairs that neither
    of them has (`impresa.data.shapes.scenes.HELD_OUT_PAIRS`). A split that fits into a quarter of a gigabyte is drawn
    once and kept, by each process that reads it. Sounds are computed anew each time, if they are asked for at all.
    Questions are of five types, see `impresa.data.shapes.questions`.
    """

    def __init__(
        self,
        config: ShapesConfig,
        split: Split,
        image_size_px: int,
        *,
        with_sound: bool = False,
        dialogues: bool = False,
    ) -> None:
        self._seed = config.seed
        self._split = split
        self._size = image_size_px
        self._with_sound = with_sound
        self._with_dialogues = dialogues
        self._length = {"train": config.num_train, "val": config.num_val, "test": config.num_test}[split]
        self._keeps = self._length * _BYTES_PER_PIXEL * image_size_px**2 <= _MOST_BYTES_KEPT
        self._kept: dict[int, Sample] = {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        sample = self._kept.get(index)
        if sample is None:
            sample = self._draw(index)
            if self._keeps:
                self._kept[index] = sample
        return replace(sample, audio=_clip(self.scene(index))) if self._with_sound else sample

    def scene(self, index: int) -> Scene:
        """The structured content of a sample."""
        if not 0 <= index < self._length:
            raise IndexError(f"scene {index} of {self._length}")
        return draw_scene(self._seed, self._split, index)

    def captions(self) -> Iterator[str]:
        return (self._describe(index, self.scene(index)) for index in range(self._length))

    def dialogues(self) -> Iterator[Dialogue]:
        indices = range(self._length if self._with_dialogues else 0)
        return (dialogue for index in indices for dialogue in self._ask(index, self.scene(index)))

    def blocks(self) -> None:
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    def _draw(self, index: int) -> Sample:
        scene = self.scene(index)
        return Sample(
            id=f"shapes/{self._split}/{index:06d}",
            image=Image.fromarray(render(scene, self._size)),
            captions=(self._describe(index, scene),),
            dialogues=self._ask(index, scene) if self._with_dialogues else (),
        )

    def _describe(self, index: int, scene: Scene) -> str:
        return describe(scene, Draws("caption", self._seed, self._split, index))

    def _ask(self, index: int, scene: Scene) -> tuple[Dialogue, ...]:
        return ask_about(scene, self._split, Draws("questions", self._seed, self._split, index))


def _clip(scene: Scene) -> Clip:
    return Clip(torch.from_numpy(synthesize(scene)).float() / (1 << 15), RATE_HZ)
