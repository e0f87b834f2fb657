"""What a user asks about: images and sounds, and the batch that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from impresa.data.audio import Clip
from impresa.data.preprocessing import Preprocessing, mask_of, spread_rows
from impresa.errors import DataError
from impresa.run_dir.golden import Golden, packed
from impresa.tasks.answering.batch import DialogueBatch, place_squares
from impresa.tasks.answering.squares import Place
from impresa.tasks.arguments import Named
from impresa.tasks.inputs import features_of, images_in, images_of, sounds_of, squares_of


@dataclass(frozen=True)
class Subject:
    """What a question is about: an image, a sound, or both."""

    images: tuple[Named, ...] = ()
    sound: Named | None = None


def subjects_of(images: Any, sounds: Any) -> tuple[list[Subject], bool]:
    """The subjects that a user gives as `images` and `sounds`, and true for a single one.

    Either may be None, and so may single items beside others. An item of `images` may be a list: several images of one
    question.

    Raises:
        DataError: there is nothing, or not as many of each, or an argument is no list of them.
    """
    if images is None and sounds is None:
        raise DataError("ask: there is neither an image nor a sound; give one of them")
    seen = None if images is None else images_of("images", images)
    heard = None if sounds is None else sounds_of("sounds", sounds)
    if seen is not None and heard is not None and len(seen.items) != len(heard.items):
        raise DataError(f"ask: {len(heard.items)} sounds for {len(seen.items)} images; give as many of each")
    first = seen or heard
    assert first is not None
    nothing = [None] * len(first.items)
    pairs = zip(seen.items if seen else nothing, heard.items if heard else nothing, strict=True)
    return [subject_of(image, sound) for image, sound in pairs], first.is_one


def subject_of(image: Named | None, sound: Named | None) -> Subject:
    """The subject of an image and a sound; either may be None, or hold None, but not both (`DataError`)."""
    given = [item for item in (image, sound) if item is not None]
    if all(item.value is None for item in given):
        raise DataError(f"{given[0].name}: is None, and there is nothing else to ask about; give an image or a sound")
    images = () if image is None or image.value is None else tuple(images_in(image))
    return Subject(images, None if sound is None or sound.value is None else sound)


def batch_of(subjects: Sequence[Subject], preprocessing: Preprocessing, max_images: int, tiles: int) -> DialogueBatch:
    """A batch without questions, which has images if any subject has one, each cut into up to so many tiles, and
    likewise sounds.

    Raises:
        DataError: the model knows no such modality, a subject has more than `max_images`, or an input cannot be read;
            the line begins with its name.
    """
    batch = DialogueBatch(ids=[str(number) for number in range(len(subjects))])
    for subject in subjects:
        if (number := len(subject.images)) > max_images:
            fault = f"{number} images of one question, and this model reads {max_images} (dataset.max_images)"
            raise DataError(f"{subject.images[0].name.removesuffix('[0]')}: {fault}; give fewer")
    sounds = [subject.sound for subject in subjects if subject.sound is not None]
    if any(subject.images for subject in subjects):
        if preprocessing.pictures is False:
            raise DataError("ask: this model was trained on sounds alone; leave the images out")
        squares, places = list[Tensor](), list[Place]()
        for sample, subject in enumerate(subjects):
            for number, image in enumerate(subject.images):
                for square, row, column in squares_of(image, preprocessing.image, tiles):
                    squares.append(square)
                    places.append(Place(sample, number, row, column))
        place_squares(batch, torch.stack(squares), places)
    if sounds:
        if preprocessing.audio is None:
            raise DataError("ask: this model has no audio encoder; leave the sounds out")
        batch.audio_present = mask_of([subject.sound is not None for subject in subjects])
        features, mask = features_of(sounds, preprocessing.audio)
        batch.audio = spread_rows(features, batch.audio_present)
        batch.audio_mask = spread_rows(mask, batch.audio_present)
    return batch


def golden_inputs(subjects: Sequence[tuple[list[Tensor], Clip | None]]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Images (3, h, w) and sound of each subject as a golden file holds them; `read_subjects` reads them back."""
    images = [image for images, _ in subjects for image in images]
    sounds = [sound for _, sound in subjects if sound is not None]
    tensors = {f"image_{number}": image for number, image in enumerate(images)}
    tensors |= {f"audio_{number}": sound.samples for number, sound in enumerate(sounds)}
    metadata = {
        "images": packed([len(images) for images, _ in subjects]),
        "sounds": packed([int(sound is not None) for _, sound in subjects]),
        "audio_rates_hz": packed([sound.rate_hz for sound in sounds]),
    }
    return tensors, metadata


def read_subjects(golden: Golden, number: int, image_size: int) -> list[Subject]:
    """The subjects of a golden file; those of older versions have an image each. Raises ValueError for another file."""
    num_images, has_sound = golden.counts("images", number, 1), golden.counts("sounds", number, 0)
    images = iter(golden.images(sum(num_images), image_size))
    sounds = iter(golden.sounds(sum(has_sound)) if any(has_sound) else ())
    return [
        Subject(
            tuple(Named("image", image) for image in islice(images, num)),
            Named("sound", Clip(*next(sounds))) if heard else None,
        )
        for num, heard in zip(num_images, has_sound, strict=True)
    ]
