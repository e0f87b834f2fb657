"""Scenes as sounds, in integer arithmetic only: every machine computes the same samples.

A scene is one second, from left to right: the columns of its 3 x 3 places are three time slots, and each object is a
tone. Its shape is the timbre, its colour the pitch, its size the loudness and length, and its row the glide of the
pitch: up (top), none (middle) or down (bottom). Objects of one column sound together. A faint noise, a different piece
in each scene, is added.
"""

from __future__ import annotations

from functools import lru_cache
from math import pi, sin

import numpy as np
from numpy.typing import NDArray

from impresa.data.shapes.rendering import noise_sheet
from impresa.data.shapes.scenes import COLOURS, Scene, SceneObject

Waveform = NDArray[np.int16]

RATE_HZ = 16_000
NUM_SAMPLES = 16_000
PITCH_HZ = dict(zip(COLOURS, (196, 247, 311, 392, 494, 622, 784, 988), strict=True))
"""Major thirds apart, so that no glide reaches the pitch of another colour."""
HARMONICS = {
    "circle": (60,),
    "square": (60, 0, 20, 0, 12),
    "triangle": (60, 0, -7, 0, 2),
    "diamond": (60, 30),
    "star": (60, 30, 20, 15, 12, 10),
    "cross": (60, 0, 0, 40),
    "ring": (10, 0, 60),
    "heart": (60, 40, 20),
}
"""Strength of each harmonic from the first on, in sixtieths of a full one; all lie below half the sampling rate."""

_SLOT = NUM_SAMPLES // 3
_LENGTH = {"small": _SLOT // 2, "large": _SLOT - 200}
_STRENGTH = {"small": 4_500, "large": 9_000}  # three at once and the noise stay within 16 bits
_FADE = 160
_GLIDE = 10  # a pitch moves by a tenth, up and down from its middle
_CYCLE = 1 << 32  # steps of phase in one cycle
_TABLE_BITS = 10


def synthesize(scene: Scene) -> Waveform:
    """The scene's sound as (16000,) int16, one second at 16 kHz."""
    start = scene.background.grain
    sound = noise_sheet().ravel()[start : start + NUM_SAMPLES].view(np.int8).astype(np.int64)
    for item in scene.objects:
        tone = _tone(item)
        first = item.column * _SLOT
        sound[first : first + len(tone)] += tone
    return sound.astype(np.int16)


def _tone(item: SceneObject) -> NDArray[np.int64]:
    length = _LENGTH[item.size]
    position = np.arange(length, dtype=np.int64)
    step = PITCH_HZ[item.colour] * _CYCLE // RATE_HZ
    bend = step * (1 - item.row) * (2 * position - length) // (_GLIDE * length)
    phase = np.cumsum(step + bend) % _CYCLE >> (32 - _TABLE_BITS)
    fade = np.minimum(np.minimum(position, length - 1 - position), _FADE)
    return _cycle(item.shape)[phase] * _STRENGTH[item.size] // (1 << 15) * fade // _FADE


@lru_cache(maxsize=len(HARMONICS))
def _cycle(shape: str) -> NDArray[np.int64]:
    """One cycle of a timbre, its peak at 2**15."""
    # Rounding removes the last bit, in which sines differ between machines.
    size, harmonics = 1 << _TABLE_BITS, HARMONICS[shape]
    values = [sum(s * sin(2 * pi * (k + 1) * i / size) for k, s in enumerate(harmonics)) for i in range(size)]
    peak = max(map(abs, values))
    return np.array([round((1 << 15) * value / peak) for value in values], dtype=np.int64)
