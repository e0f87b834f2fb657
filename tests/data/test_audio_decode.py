"""Sound files of every format, rate and number of channels become the same waveform and the same features."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from pydantic import TypeAdapter

from impresa.data.audio import NUM_MELS, Clip, LogMelTransform, checked_clip, load_audio, log_mel, resample
from impresa.errors import DataError


def _sine(rate_hz: int, seconds: float = 1.0, pitch_hz: float = 440.0) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * pitch_hz * torch.arange(int(seconds * rate_hz)) / rate_hz)


def _write(path: Path, samples: torch.Tensor, rate_hz: int) -> Path:
    soundfile.write(path, samples.numpy(), rate_hz)
    return path


def _frames_at_the_pitch(samples: torch.Tensor) -> float:
    """Share of inner frames whose loudest mel bin is that of a 440 Hz sine."""
    loudest = log_mel(_sine(16_000))[50].argmax()
    return (log_mel(samples).argmax(dim=1)[5:-5] == loudest).float().mean().item()


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_decodes_every_format_and_rate(tmp_path: Path, suffix: str, rate_hz: int) -> None:
    path = _write(tmp_path / f"sound.{suffix}", _sine(rate_hz), rate_hz)
    for source in (path, str(path), path.read_bytes()):
        clip = load_audio(source)
        assert clip.rate_hz == rate_hz
        samples = resample(clip, 16_000)
        assert samples.dtype == torch.float32
        assert len(samples) == pytest.approx(16_000, rel=0.15)  # mp3 pads to whole frames
        assert _frames_at_the_pitch(samples) > 0.85


def test_an_odd_rate_is_met_exactly() -> None:
    samples = resample(Clip(_sine(44_101, 2.0), 44_101), 16_000)
    torch.testing.assert_close(samples[800:-800], _sine(16_000, 2.0)[800:-800], atol=2e-3, rtol=0)


def test_stereo_is_averaged(tmp_path: Path) -> None:
    left = _sine(16_000)
    path = _write(tmp_path / "stereo.wav", torch.stack((left, -0.5 * left), dim=1), 16_000)
    torch.testing.assert_close(load_audio(path).samples, 0.25 * left, atol=1e-4, rtol=0)


def test_resampling_does_not_alias() -> None:
    too_high = _sine(44_100, pitch_hz=9_000)
    assert resample(Clip(too_high, 44_100), 16_000)[800:-800].abs().max() < 5e-3


def test_the_end_of_a_clip_does_not_leak_into_its_start() -> None:
    click = torch.zeros(8_000)
    click[-1] = 1.0
    assert resample(Clip(click, 8_000), 16_000)[:200].abs().max() < 1e-3


def test_max_seconds_decodes_the_start_only(tmp_path: Path) -> None:
    path = _write(tmp_path / "long.wav", _sine(8_000, 3.0), 8_000)
    torch.testing.assert_close(load_audio(path, max_seconds=0.5).samples, load_audio(path).samples[:4_000])


def test_no_more_is_decoded_than_the_limit_whatever_the_header_promises(tmp_path: Path) -> None:
    assert load_audio(_write(tmp_path / "long.flac", _sine(8_000, 600.0), 8_000)).samples.shape == (80_000,)
    data = bytearray(_write(tmp_path / "a.wav", _sine(8_000, 0.5), 8_000).read_bytes())
    for start in (4, data.index(b"data") + 4):  # the lengths of the file and of its samples
        data[start : start + 4] = struct.pack("<I", 0xFFFF_FFF0)
    assert load_audio(bytes(data), max_seconds=1e9).samples.shape == (4_000,)


@pytest.mark.parametrize("rate_hz", [1, 999, 768_001, 2**31 - 1])
def test_a_rate_that_no_sound_has_is_refused(tmp_path: Path, rate_hz: int) -> None:
    data = bytearray(_write(tmp_path / "a.wav", _sine(8_000, 0.1), 8_000).read_bytes())
    data[24:28] = struct.pack("<I", rate_hz)
    with pytest.raises(DataError, match=f"has a rate of {rate_hz} Hz, outside 1000 to 768000"):
        load_audio(bytes(data))
    with pytest.raises(ValueError, match="has a rate"):
        checked_clip(torch.zeros(10), rate_hz)


def test_samples_far_above_full_scale_are_refused(tmp_path: Path) -> None:
    for peak, is_sound in ((1.5, True), (4.0, True), (4.1, False), (40.0, False), (32_767.0, False)):
        file = io.BytesIO()
        samples = np.array([0.0, -peak], np.float32)
        soundfile.write(file, samples, 16_000, format="WAV", subtype="FLOAT")
        if is_sound:
            assert load_audio(file.getvalue()).samples.tolist() == samples.tolist()
        else:
            with pytest.raises(DataError, match=rf"holds samples of {peak:g}, where full scale is 1; divide"):
                load_audio(file.getvalue())


def test_lack_of_memory_is_a_bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: object, *_: object, **__: object) -> None:
        raise MemoryError

    path = _write(tmp_path / "a.wav", _sine(8_000, 0.1), 8_000)
    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    with pytest.raises(DataError, match=r"a\.wav: needs more memory"):
        load_audio(path)


def test_a_name_that_says_raw_is_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(b"123")
    with pytest.raises(DataError, match="cannot be decoded as sound"):
        load_audio(path)


def test_missing_damaged_empty_and_infinite_files_are_named(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.mp3"
    damaged.write_bytes(b"this is no sound")
    with pytest.raises(DataError, match=r"damaged\.mp3: cannot be decoded as sound .*; give a wav"):
        load_audio(damaged)
    with pytest.raises(DataError, match=r"missing\.wav: No such file or directory; give the path of a sound file"):
        load_audio(tmp_path / "missing.wav")
    with pytest.raises(DataError, match="16 bytes: cannot be decoded"):
        load_audio(damaged.read_bytes())
    with pytest.raises(DataError, match=r"empty\.wav: holds no sound"):
        load_audio(_write(tmp_path / "empty.wav", torch.zeros(0), 16_000))
    infinite = io.BytesIO()
    soundfile.write(infinite, np.array([0.0, np.inf], dtype=np.float32), 16_000, format="WAV", subtype="FLOAT")
    with pytest.raises(DataError, match="not finite"):
        load_audio(infinite.getvalue())


def test_log_mel_equals_the_float64_formula_of_transformers() -> None:
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    samples = 0.1 * torch.randn(16_000)
    filters = mel_filter_bank(513, NUM_MELS, 0, 8_000, 16_000, norm=None, mel_scale="htk")
    window = window_function(400, "hann")
    window /= window.sum()
    power = spectrogram(
        samples.double().numpy(), window, 400, 160, fft_length=1024, power=2.0, pad_mode="constant",
        mel_filters=filters, mel_floor=1e-8, log_mel="log10",
    )  # fmt: skip
    theirs = torch.from_numpy(power.T[:100] / 4 + 1).float()
    torch.testing.assert_close(log_mel(samples), theirs, atol=2e-4, rtol=0)


def test_features_range_from_silence_to_full_scale() -> None:
    assert log_mel(torch.zeros(16_000)).unique().tolist() == [-1.0]
    assert 0.8 < log_mel(2 * _sine(16_000, pitch_hz=1_000)).max() < 1.0


@pytest.mark.parametrize(("num_samples", "num_frames"), [(1, 1), (160, 1), (161, 2), (16_000, 100), (80_000, 200)])
def test_the_transform_keeps_short_clips_and_cuts_long_ones(num_samples: int, num_frames: int) -> None:
    transform = LogMelTransform(max_seconds=2.0)
    features, mask = transform([Clip(torch.randn(num_samples), 16_000)])
    assert features.shape == (1, num_frames, NUM_MELS)
    assert mask.tolist() == [[True] * num_frames]
    assert transform.max_frames == 200


def test_the_transform_survives_its_dict() -> None:
    transform = LogMelTransform(max_seconds=1.5)
    assert TypeAdapter(LogMelTransform).validate_python(transform.to_dict()) == transform


def test_a_batch_is_padded_under_a_false_mask() -> None:
    transform, short, long = (
        LogMelTransform(max_seconds=2.0),
        Clip(_sine(16_000, 0.03), 16_000),
        Clip(_sine(8_000), 8_000),
    )
    features, mask = transform([short, long])
    assert features.shape == (2, 100, NUM_MELS)
    assert mask.sum(dim=1).tolist() == [3, 100]
    torch.testing.assert_close(features[:1, :3], transform([short])[0])
