"""Scenes as sounds: the same bytes everywhere, and everything that a caption says can be heard."""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b

import numpy as np
import pytest
import torch

from impresa.config.dataset import ShapesConfig
from impresa.data.shapes.scenes import COLOURS, PLACES, SHAPES, Scene, SceneObject, draw_scene
from impresa.data.shapes.sounds import HARMONICS, NUM_SAMPLES, PITCH_HZ, RATE_HZ, synthesize
from impresa.data.sources import Reading
from impresa.data.sources.shapes import ShapesSource

QUIET = draw_scene(0, "train", 0).background
ITEM = SceneObject(
    colour="green", shape="circle", size="large", place="center", x=500, y=500, radius=150, angle=0, tint=(0, 0, 0)
)


def sound_of(*changes: dict[str, object]) -> np.ndarray:
    """The sound of one object per change of a large green circle in the center."""
    return synthesize(Scene(tuple(replace(ITEM, **change) for change in changes), QUIET)).astype(np.int64)


def pitch_hz(sound: np.ndarray) -> float:
    """The loudest frequency."""
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    return float(spectrum.argmax() * RATE_HZ / len(sound))


def test_the_same_bytes_on_every_machine() -> None:
    digest = blake2b(digest_size=8)
    for index in range(20):
        digest.update(synthesize(draw_scene(3, "train", index)).astype("<i2").tobytes())
    assert digest.hexdigest() == "b71578cd2cee1e5a"


def test_everything_has_its_sound() -> None:
    assert set(PITCH_HZ) == set(COLOURS)
    assert set(HARMONICS) == set(SHAPES)
    assert max(PITCH_HZ.values()) * 1.1 * max(map(len, HARMONICS.values())) < RATE_HZ / 2


@pytest.mark.parametrize("colour", COLOURS)
def test_a_colour_is_a_pitch(colour: str) -> None:
    middle = sound_of({"colour": colour})[5_500:10_000]
    assert pitch_hz(middle) == pytest.approx(PITCH_HZ[colour], rel=0.02)


def test_a_shape_is_a_timbre() -> None:
    def timbre(shape: str) -> np.ndarray:
        spectrum = np.abs(np.fft.rfft(sound_of({"shape": shape})[5_500:10_000]))
        return spectrum / np.linalg.norm(spectrum)

    timbres = np.stack([timbre(shape) for shape in SHAPES])
    cosines = timbres @ timbres.T - np.eye(len(SHAPES))
    assert cosines.max() < 0.995


def test_a_small_object_is_softer_and_shorter() -> None:
    small, large = sound_of({"size": "small"}), sound_of({})
    assert 2 * abs(small).max() == pytest.approx(abs(large).max(), rel=0.01)
    assert 2 * (abs(small) > 100).sum() == pytest.approx((abs(large) > 100).sum(), rel=0.1)


@pytest.mark.parametrize("place", PLACES)
def test_a_column_is_a_time_and_a_row_a_glide(place: str) -> None:
    sound = sound_of({"place": place})
    slots = [abs(sound[i * 5_333 : (i + 1) * 5_333]).max() > 1_000 for i in range(3)]
    row, column = divmod(PLACES.index(place), 3)
    assert slots == [i == column for i in range(3)]
    start = column * 5_333
    rise = pitch_hz(sound[start + 3_400 : start + 5_000]) - pitch_hz(sound[start + 100 : start + 1_700])
    assert (rise > 15) - (rise < -15) == 1 - row


def test_objects_of_a_column_sound_together_and_nothing_clips() -> None:
    places = ("top", "center", "bottom")
    scene = [
        {"place": place, "shape": "circle", "colour": colour} for place, colour in zip(places, COLOURS, strict=False)
    ]
    together = sound_of(*scene)
    noise = sound_of()
    apart = sum(sound_of(change) - noise for change in scene) + noise
    assert np.array_equal(together, apart)
    assert 20_000 < abs(together).max() < 2**15
    assert 0 < abs(noise).max() <= 4


def test_a_source_draws_sounds_only_when_asked() -> None:
    silent = ShapesSource(ShapesConfig(), "val", 16)
    loud = ShapesSource(ShapesConfig(), "val", 16, Reading(audio_seconds=1.0))
    assert silent[3].audio is None
    assert replace(loud[3], audio=None) == silent[3]
    for _ in range(2):  # drawn, and kept
        clip = loud[3].audio
        assert (clip.rate_hz, clip.samples.dtype, clip.samples.shape) == (RATE_HZ, torch.float32, (NUM_SAMPLES,))
        assert np.array_equal((clip.samples * 2**15).numpy(), synthesize(loud.scene(3)))
