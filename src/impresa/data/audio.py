"""Sound: decoding files of any common format, resampling, and the features that audio towers read.

Letters: S samples of a waveform, F frames (of 10 ms in our own features), M mel bins.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, BinaryIO, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from torch import Tensor

from impresa.config.encoder import EncoderConfig
from impresa.data.disk import MAX_BYTES, open_regular
from impresa.errors import ConfigError, DataError
from impresa.hub import from_pretrained, reading

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
LEAST_RATE_HZ, MOST_RATE_HZ = 1_000, 768_000
MOST_SECONDS = EncoderConfig.audio_max_seconds
"""Seconds of a file that are decoded, where no model says otherwise."""
MOST_PEAK = 4.0
"""Largest absolute sample, 12 dB above full scale: more is no sound from -1 to 1, but for example one in integers."""
_VALUES_AT_ONCE = 1 << 20
"""Numbers, over all channels, that are decoded at a time."""
_LARGEST_SETTING = 10**7
"""Of a stored feature extractor; the largest known one is a length in samples, 480,000."""
_BACKBONE = "audio_encoder.backbone"
_SHORTEST = 400
"""Samples that AST needs for its first frame; shorter clips are filled up with silence."""


@dataclass(frozen=True)
class Covered:
    """A span of a clip's features that training covers."""

    axis: int
    """0 for a span of time, 1 for one of pitch."""
    start: float
    share: float
    """Beginning and length, as parts of the clip's real frames or of the bins."""


@dataclass(frozen=True)
class Clip:
    """A piece of sound in one channel."""

    samples: Tensor
    """(S,) float32, about -1 to 1."""
    rate_hz: int
    covered: tuple[Covered, ...] = ()
    """Training alone covers any."""


def load_audio(source: Path | str | bytes, max_seconds: float = MOST_SECONDS) -> Clip:
    """Decode a wav, flac, ogg or mp3 file; several channels are averaged.

    Args:
        source: a path, or the bytes of a file.
        max_seconds: decode no more than this from the start, whatever the file holds. A model's own limit is the
            `audio_max_seconds` of its `audio_encoder`.

    Raises:
        DataError: the file is missing, no regular file, larger than 256 MiB, empty, damaged, has a rate outside 1 to
            768 kHz, or holds values that are not finite or above 4, where full scale is 1.
    """
    name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
    try:
        if isinstance(source, bytes):
            return decode_audio(source, max_seconds)
        with open_regular(source, MAX_BYTES) as opened:
            return decode_audio(opened, max_seconds)
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}; give the path of a sound file") from error
    except ValueError as error:
        raise DataError(f"{name}: {error}; give a wav, flac, ogg or mp3 file that has sound") from error


def decode_audio(source: bytes | BinaryIO, max_seconds: float = MOST_SECONDS) -> Clip:
    """Decode as `load_audio` does, or from an open file, with a ValueError whose message is the reason alone."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            rate_hz = int(file.samplerate)
            _check_rate(rate_hz)
            pieces = list(_decoded(file, math.ceil(max_seconds * rate_hz)))
    except ValueError:
        raise
    except MemoryError as error:
        raise ValueError("needs more memory than there is") from error
    except Exception as error:  # the decoders of damaged files raise exceptions of many types
        # The library's own message names the address of a buffer, which is another in each process.
        raise ValueError(f"cannot be decoded as sound ({getattr(error, 'error_string', error)})") from error
    return checked_clip(torch.cat(pieces) if pieces else torch.zeros(0), rate_hz)


def _decoded(file: Any, num_samples: int) -> Iterator[Tensor]:
    """The first samples of an open file, channels averaged, a piece at a time: its header may promise anything."""
    most = max(_VALUES_AT_ONCE // file.channels, 1)
    while num_samples > 0:
        channels = file.read(min(num_samples, most), dtype="float32", always_2d=True)  # (S, channels)
        if not len(channels):
            return
        yield torch.from_numpy(channels).mean(dim=1)
        num_samples -= len(channels)


def checked_clip(samples: Tensor, rate_hz: int) -> Clip:
    """A clip of (S,) samples.

    Raises:
        ValueError: no samples, values that are not finite or far above 1, or a rate that no sound has; the message is
            the reason alone.
    """
    _check_rate(rate_hz)
    if not len(samples):
        raise ValueError("holds no sound")
    if not samples.isfinite().all():
        raise ValueError("holds samples that are not finite numbers")
    if (peak := samples.abs().max().item()) > MOST_PEAK:
        raise ValueError(f"holds samples of {peak:g}, where full scale is 1; divide them by their full scale")
    return Clip(samples, rate_hz)


def _check_rate(rate_hz: int) -> None:
    if not LEAST_RATE_HZ <= rate_hz <= MOST_RATE_HZ:
        raise ValueError(f"has a rate of {rate_hz} Hz, outside {LEAST_RATE_HZ} to {MOST_RATE_HZ}")


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


Seconds = Annotated[float, Field(gt=0, le=3600)]


@dataclass(frozen=True)
class LogMelTransform:
    """The input of an audio tower from scratch: log-mel features of clips, 128 bins, 100 frames a second."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")
    max_seconds: Seconds
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
        return cover(clips, padded, torch.arange(padded.shape[1]) < lengths[:, None])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)


def cover(clips: Sequence[Clip], features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Fill the covered spans of features (B, F, M) with the mean of the clip's real frames, and pass on the mask."""
    for clip, rows, num_frames in zip(clips, features, mask.sum(dim=1).tolist(), strict=True):
        real = rows[:num_frames]
        mean = real.mean() if clip.covered else 0.0
        for span in clip.covered:  # both rounded down, so that they fit
            first, length = (int(part * real.shape[span.axis]) for part in (span.start, span.share))
            real.narrow(span.axis, first, length).fill_(mean)
    return features, mask


def log_mel(samples: Tensor) -> Tensor:
    """(S,) samples at 16 kHz to (F, M) log-mel features, F = S / 160 rounded up.

    The window has sum 1, so that the power of a full-scale sine is a quarter for every length of the window.
    """
    num_frames = max(1, math.ceil(len(samples) / HOP))
    padded = torch.nn.functional.pad(samples, (0, num_frames * HOP - len(samples)))
    window = torch.hann_window(_WINDOW, dtype=torch.float32)
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
            extractor = from_pretrained(AutoFeatureExtractor, name)
        if type(extractor).__name__ not in _FEATURES:
            raise ConfigError(f"{_BACKBONE}: {name} does not read sound as Whisper, CLAP or AST do; use one of them")
        return cls(extractor, max_seconds)

    def __call__(self, clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
        """Features of B clips, (B, F, M) float32, and a (B, F) bool mask, true on frames that are not padding."""
        rate_hz = self._extractor.sampling_rate
        longest = int(self.max_seconds * rate_hz)
        waveforms = [resample(clip, rate_hz)[:longest].numpy() for clip in clips]
        features, mask = _FEATURES[type(self._extractor).__name__](self._extractor, waveforms)
        return cover(clips, features.float(), mask)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {"max_seconds": self.max_seconds, "extractor": json.loads(self._extractor.to_json_string())}


@dataclass(frozen=True)
class StoredExtractor:
    """The values that `PretrainedAudioTransform.to_dict` gives, as they are stored."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")
    max_seconds: Seconds
    extractor: dict[str, Any]
    """Settings of transformers' feature extractor."""

    def transform(self) -> PretrainedAudioTransform:
        """The transform. Raises ValueError for settings of anything else, or that would take all memory."""
        import transformers

        name = self.extractor.get("feature_extractor_type")
        if name not in _FEATURES:
            raise ValueError(f"`audio.extractor`: {name!r:.40} is none of {', '.join(_FEATURES)}")
        numbers = [value for value in self.extractor.values() if isinstance(value, int | float)]
        if not all(abs(number) <= _LARGEST_SETTING for number in numbers):
            raise ValueError(f"`audio.extractor`: has a number above {_LARGEST_SETTING}")
        try:
            return PretrainedAudioTransform(getattr(transformers, name).from_dict(self.extractor), self.max_seconds)
        except Exception as error:  # what an extractor makes of odd settings is its own affair
            raise ValueError(f"`audio.extractor`: {error}") from error


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
