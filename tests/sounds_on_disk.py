"""Sounds as files, for several tests of the data part."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import soundfile
import torch


def sine(pitch_hz: float, seconds: float = 0.5, rate_hz: int = 16_000) -> torch.Tensor:
    """(S,) samples of a tone."""
    return 0.5 * torch.sin(2 * torch.pi * pitch_hz * torch.arange(int(seconds * rate_hz)) / rate_hz)


def wav(pitch_hz: float, seconds: float = 0.5, rate_hz: int = 16_000) -> bytes:
    """A file whose pitch says which it is."""
    file = BytesIO()
    soundfile.write(file, sine(pitch_hz, seconds, rate_hz).numpy(), rate_hz, format="WAV")
    return file.getvalue()


def write_wavs(folder: Path, count: int) -> None:
    """0.wav, 1.wav and so on, each 100 Hz higher than the one before."""
    for number in range(count):
        (folder / f"{number}.wav").write_bytes(wav(200 + 100 * number))
