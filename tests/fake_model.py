"""Stand-ins for a trained model and a source, so that evaluation and reports are tested without training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from impresa.config.dataset import DatasetConfig
from impresa.config.experiment import ExperimentConfig
from impresa.data.images import ImageTransform
from impresa.data.sample import Sample
from impresa.data.sources.base import BadSample
from impresa.errors import ConfigError

COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 200, 20),
    "blue": (20, 20, 220),
    "white": (250, 250, 250),
    "black": (5, 5, 5),
    "yellow": (230, 230, 10),
}


class MeanColour(ImageTransform):
    """Any image becomes three numbers."""

    def __call__(self, image: Image.Image) -> Tensor:
        return _vector(image.convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)))


@dataclass
class ColourModel:
    """Embeds an image as its mean colour, and a text as the first colour word in it (or the origin)."""

    config: ExperimentConfig = field(default_factory=ExperimentConfig)
    calls: list[tuple[str, int]] = field(default_factory=list)
    broken: bool = False

    def explain(self, image: Image.Image, words: str | None, **options: Any) -> Any:
        raise ConfigError("vision_encoder.backbone: there is nothing to look into")

    @classmethod
    def with_templates(cls, *templates: str) -> ColourModel:
        return cls(config=replace(ExperimentConfig(), dataset=DatasetConfig(prompt_templates=templates)))

    @property
    def preprocessing(self) -> Any:
        """Of images: their mean colour; texts of any length are read whole."""
        return SimpleNamespace(image=MeanColour(32), texts=SimpleNamespace(num_cut=lambda _: 0, max_len=77))

    def encode_image(self, images: list[Tensor], *, batch_size: int = 32, device: object = None) -> Tensor:
        self.calls.append(("image", len(images)))
        return torch.stack(images) * (float("nan") if self.broken else 1)

    def encode_text(self, texts: list[str], *, batch_size: int = 32, device: object = None, **_: object) -> Tensor:
        self.calls.append(("text", len(texts)))
        words = [[word.strip(".,!?") for word in text.split()] for text in texts]
        return torch.stack(
            [_vector(next((COLOURS[w] for w in known if w in COLOURS), (128, 128, 128))) for known in words]
        )


@dataclass
class ListSource:
    """A list of samples; an item that is an exception is raised."""

    items: list[Sample | BadSample]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        item = self.items[index]
        if isinstance(item, BadSample):
            raise item
        return item

    def captions(self) -> Iterator[str]:
        return (caption for item in self.items if isinstance(item, Sample) for caption in item.captions)

    def blocks(self) -> None:
        return None


def colour_source(
    num: int = 24, *, captions: int = 1, labels: bool = False, size: tuple[int, int] = (8, 8)
) -> ListSource:
    """Plain coloured squares with captions that name the colour and their number."""
    samples = []
    for i in range(num):
        name = list(COLOURS)[i % len(COLOURS)]
        texts = tuple(f"{name} square {i} {j}" for j in range(captions))
        image = Image.new("RGB", size, tuple(min(255, c + i // len(COLOURS)) for c in COLOURS[name]))
        samples.append(Sample(id=f"square-{i}", image=image, captions=texts, label=name if labels else None))
    return ListSource(list(samples))


def _vector(rgb: tuple[int, ...]) -> Tensor:
    return torch.tensor(rgb, dtype=torch.float32) / 128 - 1
