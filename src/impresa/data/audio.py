"""Sound: decoding files of any common format, resampling, and the features that audio towers read.

Letters: S samples of a waveform, F frames (of 10 ms in our own features), M mel bins.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from impresa.errors import ConfigError, DataError
from impresa.hub import location, reading

RATE_HZ = 16_000
NUM_MELS = 128
HOP = 160
"""Samples between two frames: 10 ms."""
_WINDOW = 400
"""Samples in a frame: 25 ms."""
_FFT = 1024
"""Longer than the window, so that the lowest mel bins are wider than a frequency bin and none is empty."""
_FLOOR = 1e-8
"""Power below which everything is silence: 80 dB under one."""
_BACKBONE = "audio_encoder.backbone"
_SHORTEST = 400
"""Samples that AST needs for its first frame; shorter clips are filled up with silence."""


@dataclass(frozen=True)
class Clip:
    """A piece of sound in one channel."""

    samples: Tensor
    """(S,) float32, about -1 to 1."""
    rate_hz: int


def load_audio(source: Path | str | bytes, max_seconds: float | None = None) -> Clip:
    """Decode a wav, flac, ogg or mp3 file of any rate; several channels are averaged.

    Args:
        source: a path, or the bytes of a file.
        max_seconds: decode no more than this from the start.

    Raises:
        DataError: the file is missing, empty, damaged, or holds values that are not finite.
    """
    name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
    try:
        return decode_audio(source, max_seconds)
    except ValueError as error:
        raise DataError(f"{name}: {error}; give a wav, flac, ogg or mp3 file that has sound") from error


def decode_audio(source: Path | str | bytes | BinaryIO, max_seconds: float | None = None) -> Clip:
    """Decode as `load_audio` does, or from an open file, with a ValueError whose message is the reason alone."""
    import soundfile

    opened = io.BytesIO(source) if isinstance(source, bytes) else str(source) if isinstance(source, Path) else source
    try:
        with soundfile.SoundFile(opened) as file:
            num_samples = -1 if max_seconds is None else math.ceil(max_seconds * file.samplerate)
            channels = torch.from_numpy(file.read(num_samples, dtype="float32", always_2d=True))  # (S, channels)
            rate_hz = int(file.samplerate)
    except (OSError, RuntimeError) as error:
        # The library's own message names the address of a buffer, which is another in each process.
        raise ValueError(f"cannot be decoded as sound ({getattr(error, 'error_string', error)})") from error
    return checked_clip(channels.mean(dim=1), rate_hz)


def checked_clip(samples: Tensor, rate_hz: int) -> Clip:
    """A clip of (S,) samples.

    Raises:
        ValueError: no samples, or values that are not finite; the message is the reason alone.
    """
    if not len(samples):
        raise ValueError("holds no sound")
    if not samples.isfinite().all():
        raise ValueError("holds samples that are not finite numbers")
    return Clip(samples, rate_hz)


def resample(clip: Clip, rate_hz: int) -> Tensor:
    """The clip's (S',) samples at another rate, without aliasing.

    The spectrum is cut, or padded with zeros, at the lower of the two Nyquist frequencies. The clip is first padded
    with silence, so that its end does not leak into its start and the ratio of the rates is exact.
    """
    if clip.rate_hz == rate_hz:
        return clip.samples
    common = math.gcd(clip.rate_hz, rate_hz)
    step, new_step = clip.rate_hz // common, rate_hz // common
    num_steps = math.ceil((len(clip.samples) + clip.rate_hz // 20) / step)
    spectrum = torch.fft.rfft(clip.samples, n=num_steps * step)
    resampled = torch.fft.irfft(spectrum, n=num_steps * new_step) * (new_step / step)
    return resampled[: math.ceil(len(clip.samples) * rate_hz / clip.rate_hz)]


@dataclass(frozen=True)
class LogMelTransform:
    """The input of an audio tower from scratch: log-mel features of clips, 128 bins, 100 frames a second."""

    max_seconds: float
    """Longer clips are cut at the end."""

    @property
    def max_frames(self) -> int:
        return math.ceil(self.max_seconds * RATE_HZ / HOP)

    def __call__(self, clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
        """Features of B clips, (B, F, M) float32 with F the longest, and a (B, F) bool mask, true on real frames.

        Features are about -1 (silence) to 1 (full scale); every clip has a frame at least.
        """
        features = [log_mel(resample(clip, RATE_HZ)[: int(self.max_seconds * RATE_HZ)]) for clip in clips]
        lengths = torch.tensor([len(frames) for frames in features])
        padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
        return padded, torch.arange(padded.shape[1]) < lengths[:, None]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LogMelTransform:
        """The transform that `to_dict` described."""
        return cls(**values)


def log_mel(samples: Tensor) -> Tensor:
    """(S,) samples at 16 kHz to (F, M) log-mel features, F = S / 160 rounded up.

    The window has sum 1, so that the power of a full-scale sine is a quarter for every length of the window.
    """
    num_frames = max(1, math.ceil(len(samples) / HOP))
    padded = torch.nn.functional.pad(samples, (0, num_frames * HOP - len(samples)))
    window = torch.hann_window(_WINDOW)
    spectrum = torch.stft(
        padded, _FFT, HOP, _WINDOW, window / window.sum(), center=True, pad_mode="constant", return_complex=True
    )
    power = spectrum[:, :num_frames].abs().square()  # (bins, F)
    return (power.T @ _mel_filters()).clamp(min=_FLOOR).log10() / 4 + 1


@cache
def _mel_filters() -> Tensor:
    """(bins, M) triangles of height one, evenly spaced on the mel scale of O'Shaughnessy from 0 to 8 kHz."""
    highest = 2595 * math.log10(1 + RATE_HZ / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, highest, NUM_MELS + 2, dtype=torch.float64) / 2595) - 1)  # in Hz
    bins = torch.linspace(0, RATE_HZ / 2, _FFT // 2 + 1, dtype=torch.float64)[:, None]
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    return torch.minimum(rising, falling).clamp(min=0).float()


class PretrainedAudioTransform:
    """A pretrained audio tower's own features of clips.

    Clips are cut at the end, to `max_seconds` and to the tower's fixed length, so that no random piece is taken;
    shorter ones are padded (CLAP: repeated) to that length.

    Args:
        extractor: transformers' feature extractor of Whisper, CLAP or AST.
        max_seconds: longer clips are cut.
    """

    def __init__(self, extractor: Any, max_seconds: float) -> None:
        self._extractor = extractor
        self.max_seconds = max_seconds

    @classmethod
    def from_backbone(cls, name: str, max_seconds: float) -> PretrainedAudioTransform:
        """The features of an audio tower by Hugging Face id or path.

        Raises:
            ConfigError: the feature extractor is missing, or is none of Whisper, CLAP and AST.
        """
        from transformers import AutoFeatureExtractor

        with reading(_BACKBONE, name):
            extractor = AutoFeatureExtractor.from_pretrained(location(name))
        if type(extractor).__name__ not in _FEATURES:
            raise ConfigError(f"{_BACKBONE}: {name} does not read sound as Whisper, CLAP or AST do; use one of them")
        return cls(extractor, max_seconds)

    def __call__(self, clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
        """Features of B clips, (B, F, M) float32, and a (B, F) bool mask, true on frames that are not padding."""
        rate_hz = self._extractor.sampling_rate
        longest = int(self.max_seconds * rate_hz)
        waveforms = [resample(clip, rate_hz)[:longest].numpy() for clip in clips]
        features, mask = _FEATURES[type(self._extractor).__name__](self._extractor, waveforms)
        return features.float(), mask

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {"max_seconds": self.max_seconds, "extractor": json.loads(self._extractor.to_json_string())}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PretrainedAudioTransform:
        import transformers

        extractor = getattr(transformers, values["extractor"]["feature_extractor_type"])
        return cls(extractor.from_dict(values["extractor"]), values["max_seconds"])


def _whisper_features(extractor: Any, waveforms: list[NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    out = extractor(waveforms, sampling_rate=extractor.sampling_rate, return_attention_mask=True, return_tensors="pt")
    return out["input_features"].transpose(1, 2), out["attention_mask"].bool()


def _clap_features(extractor: Any, waveforms: list[NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    seen = [waveform[: extractor.nb_max_samples] for waveform in waveforms]
    features = extractor(seen, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_features"]
    features = features[:, 0]  # with fusion there are four crops, all alike because nothing is longer than a crop
    return features, torch.ones(features.shape[:2], dtype=torch.bool)


def _ast_features(extractor: Any, waveforms: list[NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    long_enough = [np.pad(waveform, (0, max(0, _SHORTEST - len(waveform)))) for waveform in waveforms]
    features = extractor(long_enough, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_values"]
    num_frames = torch.tensor([1 + (len(waveform) - _SHORTEST) // 160 for waveform in long_enough])
    return features, torch.arange(features.shape[1]) < num_frames[:, None]


_FEATURES = {
    "WhisperFeatureExtractor": _whisper_features,
    "ClapFeatureExtractor": _clap_features,
    "ASTFeatureExtractor": _ast_features,
}
