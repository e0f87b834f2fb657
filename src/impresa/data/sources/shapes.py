"""The embedded data set: procedural scenes, the same on every machine, nothing downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from itertools import chain
from typing import Any

import torch
from PIL import Image

from impresa.config.dataset import ShapesConfig
from impresa.data.audio import Clip
from impresa.data.dialogue import Dialogue
from impresa.data.sample import Sample
from impresa.data.shapes.captions import describe
from impresa.data.shapes.draws import Draws
from impresa.data.shapes.questions import ask_about
from impresa.data.shapes.rendering import render
from impresa.data.shapes.scenes import Scene, Split, draw_scene
from impresa.data.shapes.sounds import RATE_HZ, synthesize
from impresa.data.sources.base import IMAGES_AND_CAPTIONS, FoundImage, Reading

_MOST_BYTES_KEPT = 256 << 20
_BYTES_PER_PIXEL = 4  # as Pillow stores RGB
_BYTES_PER_SCENE = 2048  # about, with its texts


class ShapesSource:
    """One split of the scenes, drawn on demand.

    `train` and `val` show the same pairs of colour and shape in different scenes; `test` shows only pairs that neither
    of them has (`impresa.data.shapes.scenes.HELD_OUT_PAIRS`). Questions are of five types, see
    `impresa.data.shapes.questions`. Each process draws a split that fits into 256 MiB once and keeps it, and draws a
    larger one anew each time. Sounds are always synthesized anew.

    Args:
        config: sizes of the splits, and the seed.
        split: `train`, `val` or `test`.
        image_size_px: side of the images.
        reading: the parts that are made beside images and captions.
    """

    def __init__(
        self, config: ShapesConfig, split: Split, image_size_px: int, reading: Reading = IMAGES_AND_CAPTIONS
    ) -> None:
        self._seed = config.seed
        self._split = split
        self._size = image_size_px
        self._reading = reading
        self._length: int = getattr(config, f"num_{split}")
        sample_bytes = _BYTES_PER_PIXEL * image_size_px**2 + _BYTES_PER_SCENE
        self._keeps = self._length * sample_bytes <= _MOST_BYTES_KEPT
        self._scenes: dict[int, Scene] = {}
        self._samples: dict[int, Sample] = {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        return self._with_sound(index, self._sample(index, drawn=True))

    def without_image(self, index: int) -> Sample:
        return self._with_sound(index, replace(self._sample(index, drawn=False), image=None))

    def image_at(self, index: int) -> FoundImage:
        image = self._sample(index, drawn=True).image
        assert image is not None
        return FoundImage(blake2b(image.tobytes(), digest_size=16).digest(), lambda: image)

    def _sample(self, index: int, *, drawn: bool) -> Sample:
        sample = self._samples.get(index)
        if sample is None or (drawn and sample.image is None):
            scene = self.scene(index)
            sample = Sample(
                id=f"shapes/{self._split}/{index:06d}",
                image=Image.fromarray(render(scene, self._size)) if drawn else None,
                captions=(self._describe(index, scene),),
                dialogues=self._ask(index, scene) if self._reading.dialogues else (),
            )
            if self._keeps:
                self._samples[index] = sample
        return sample

    def _with_sound(self, index: int, sample: Sample) -> Sample:
        if not self._reading.sounds:
            return sample
        samples = torch.from_numpy(synthesize(self.scene(index))).float() / (1 << 15)
        return replace(sample, audio=Clip(samples, RATE_HZ))

    def scene(self, index: int) -> Scene:
        """The structured content of a sample."""
        scene = self._scenes.get(index)
        if scene is None:
            if not 0 <= index < self._length:
                raise IndexError(f"scene {index} of {self._length}")
            scene = draw_scene(self._seed, self._split, index)
            if self._keeps:
                self._scenes[index] = scene
        return scene

    def captions(self) -> Iterator[str]:
        return (self._describe(index, self.scene(index)) for index in range(self._length))

    def dialogues(self) -> Iterator[Dialogue]:
        return chain.from_iterable(self.dialogues_by_sample())

    def dialogues_by_sample(self) -> Iterator[tuple[Dialogue, ...]]:
        indices = range(self._length if self._reading.dialogues else 0)
        return (self._ask(index, self.scene(index)) for index in indices)

    def blocks(self) -> None:
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scenes": {}, "_samples": {}}

    def _describe(self, index: int, scene: Scene) -> str:
        return describe(scene, Draws("caption", self._seed, self._split, index))

    def _ask(self, index: int, scene: Scene) -> tuple[Dialogue, ...]:
        return ask_about(scene, self._split, Draws("questions", self._seed, self._split, index))
