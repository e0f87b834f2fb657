"""Random changes of sounds for training. Every draw comes from the generator that is given, so it can be repeated.

S is the number of samples of a waveform.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from impresa.config.dataset import AudioAugmentation
from impresa.data.audio import Clip, Covered, resample


@dataclass(frozen=True)
class _Preset:
    """How far each change goes."""

    gain_db: float
    """Louder or softer by up to this."""
    shift: float
    """Earlier or later by up to this part of the clip, silence in the empty place."""
    speed_percent: int
    """Faster and higher, or slower and lower, by up to this (Ko et al. 2015)."""
    noise_db: tuple[float, float]
    """White noise, so far below the mean power of the clip."""
    num_covered: int = 0
    """Spans of time, and of pitch, covered in the features (SpecAugment, Park et al. 2019, arXiv:1904.08779)."""
    covered: float = 0.0
    """Largest part of the length, or height, that one of them takes."""


_PRESETS: dict[AudioAugmentation, _Preset] = {
    "light": _Preset(gain_db=6, shift=0.05, speed_percent=5, noise_db=(30, 50)),
    "strong": _Preset(gain_db=10, shift=0.1, speed_percent=10, noise_db=(15, 40), num_covered=2, covered=0.15),
}


def augment_sound(clip: Clip, kind: AudioAugmentation, generator: np.random.Generator) -> Clip:
    """A training version of a clip, of the same rate; `none` is the clip itself."""
    preset = _PRESETS.get(kind)
    if preset is None:
        return clip
    samples = _at_speed(clip, 100 + int(generator.integers(-preset.speed_percent, preset.speed_percent, endpoint=True)))
    samples = _shifted(samples, int(generator.uniform(-preset.shift, preset.shift) * len(samples)))
    noise = torch.from_numpy(generator.standard_normal(len(samples), dtype=np.float32))
    level = samples.square().mean().sqrt() * 10 ** (-generator.uniform(*preset.noise_db) / 20)
    gain = 10 ** (generator.uniform(-preset.gain_db, preset.gain_db) / 20)
    covered = tuple(_drawn_span(axis, preset.covered, generator) for axis in (0, 1) for _ in range(preset.num_covered))
    return Clip((samples + level * noise) * gain, clip.rate_hz, covered)


def _at_speed(clip: Clip, percent: int) -> Tensor:
    return resample(Clip(clip.samples, round(clip.rate_hz * percent / 100)), clip.rate_hz)


def _shifted(samples: Tensor, by: int) -> Tensor:
    """(S,) moved to the right, or to the left by a negative number, with zeros in the empty place."""
    length = len(samples)
    return torch.nn.functional.pad(samples, (max(by, 0), max(-by, 0)))[max(-by, 0) :][:length]


def _drawn_span(axis: int, longest: float, generator: np.random.Generator) -> Covered:
    share = generator.uniform(0, longest)
    return Covered(axis, generator.uniform(0, 1 - share), share)
