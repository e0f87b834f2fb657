"""Training sounds: what each preset changes, and by how much; draws that can be repeated."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from impresa.config.dataset import AudioAugmentation
from impresa.data.audio import NUM_MELS, Clip, Covered, LogMelTransform, cover
from impresa.data.images import ImageTransform
from impresa.data.loading import TrainingView
from impresa.data.sample import Sample
from impresa.data.sound_augmentation import augment_sound

RATE = 16_000
TONE_HZ = 440
CHANGES: list[AudioAugmentation] = ["light", "strong"]
SHIFT, SPEED, GAIN_DB = ({"light": light, "strong": strong} for light, strong in ((0.05, 0.1), (0.05, 0.1), (6, 10)))


def tone(seconds: float = 1.0, rate: int = RATE) -> Clip:
    times = torch.arange(int(seconds * rate)) / rate
    return Clip(0.1 * torch.sin(2 * torch.pi * TONE_HZ * times), rate)


def versions(kind: AudioAugmentation, clip: Clip, num: int = 40) -> list[Clip]:
    return [augment_sound(clip, kind, np.random.default_rng(seed)) for seed in range(num)]


def pitch(clip: Clip) -> float:
    return float(torch.fft.rfft(clip.samples).abs().argmax()) * clip.rate_hz / len(clip.samples)


def test_none_is_the_clip_itself() -> None:
    assert versions("none", clip := tone(), 1)[0] is clip


@pytest.mark.parametrize("kind", CHANGES)
def test_speed_and_pitch_change_within_their_bounds(kind: AudioAugmentation) -> None:
    found = versions(kind, tone())
    speeds = torch.tensor([RATE / len(clip.samples) for clip in found])
    pitches = torch.tensor([pitch(clip) / TONE_HZ for clip in found])
    assert 1 - SPEED[kind] - 1e-3 <= speeds.min() < 1 - 0.6 * SPEED[kind]
    assert 1 + 0.6 * SPEED[kind] < speeds.max() <= 1 + SPEED[kind] + 1e-3
    torch.testing.assert_close(pitches, speeds, rtol=0.01, atol=0)
    assert {clip.rate_hz for clip in found} == {RATE}


@pytest.mark.parametrize("kind", CHANGES)
def test_gain_stays_within_its_bounds(kind: AudioAugmentation) -> None:
    """With some room for the noise, and for the silence of the shift."""
    gains = torch.tensor(
        [float(clip.samples.square().mean().sqrt()) / (0.1 / 2**0.5) for clip in versions(kind, tone())]
    )
    decibels = 20 * gains.log10()
    assert -GAIN_DB[kind] - 0.6 <= decibels.min() < -0.5 * GAIN_DB[kind]
    assert 0.5 * GAIN_DB[kind] < decibels.max() <= GAIN_DB[kind] + 0.2


@pytest.mark.parametrize("kind", CHANGES)
def test_a_sound_moves_either_way_into_silence(kind: AudioAugmentation) -> None:
    click = torch.zeros(RATE)
    click[RATE // 2] = 1.0
    places = [int(clip.samples.abs().argmax()) / len(clip.samples) - 0.5 for clip in versions(kind, Clip(click, RATE))]
    assert -SHIFT[kind] - 1e-3 <= min(places) < -0.5 * SHIFT[kind]
    assert 0.5 * SHIFT[kind] < max(places) <= SHIFT[kind] + 1e-3


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100])
@pytest.mark.parametrize("length", [1, 2, 500])
def test_any_clip_stays_finite_and_keeps_its_rate(kind: AudioAugmentation, rate: int, length: int) -> None:
    for clip in versions(kind, Clip(torch.rand(length), rate), 5):
        assert clip.rate_hz == rate
        assert 0.8 * length <= len(clip.samples) <= 1.2 * length + 1
        assert clip.samples.isfinite().all()
        assert clip.samples.dtype == torch.float32


@pytest.mark.parametrize(("kind", "least_db", "most_db"), [("light", 29, 51), ("strong", 14, 41)])
def test_noise_is_as_far_below_the_sound_as_said(kind: AudioAugmentation, least_db: float, most_db: float) -> None:
    """By the power beside the tone, in the middle of the clip, which no shift reaches."""
    for clip in versions(kind, tone(4.0), 10):
        middle = clip.samples[len(clip.samples) // 4 : -len(clip.samples) // 4]
        power = torch.fft.rfft(middle * torch.hann_window(len(middle))).abs().square()
        peak = int(power.argmax())
        beside = torch.cat([power[: peak - 50], power[peak + 50 :]]).sum()
        assert least_db - 1 < 10 * float((power[peak - 50 : peak + 50].sum() / beside).log10()) < most_db + 1


@pytest.mark.parametrize("num", [1, 2, 5, 7, 33])
def test_spans_always_fit(num: int) -> None:
    features, mask = torch.randn(1, 40, num), torch.arange(40)[None] < num
    for start in torch.linspace(0, 0.85, 40).tolist():
        spans = (Covered(0, start, 1 - start), Covered(1, start, 1 - start))
        assert cover([Clip(torch.zeros(1), RATE, spans)], features.clone(), mask)[0].isfinite().all()


def test_silence_stays_silent() -> None:
    assert all(not clip.samples.any() for clip in versions("strong", Clip(torch.zeros(800), RATE), 5))


def test_strong_covers_spans_of_the_features_and_light_does_not() -> None:
    assert not any(clip.covered for clip in versions("light", tone()))
    spans = [span for clip in versions("strong", tone()) for span in clip.covered]
    assert [span.axis for span in spans] == 40 * [0, 0, 1, 1]
    assert all(0 <= span.start <= span.start + span.share <= 1 and span.share <= 0.15 for span in spans)
    assert max(span.share for span in spans) > 0.12


def test_covered_spans_have_the_mean_of_the_clip_and_nothing_else_changes() -> None:
    clip = tone(0.5)
    covered = Clip(clip.samples, RATE, (Covered(0, 0.2, 0.1), Covered(1, 0.5, 0.25)))
    other = tone(1.0)  # the first is padded
    features, mask = LogMelTransform(2.0)([clip, other])
    hidden, its_mask = LogMelTransform(2.0)([covered, other])
    assert torch.equal(mask, its_mask)
    expected = features.clone()
    mean = features[0, :50].mean()
    expected[0, 10:15] = mean
    expected[0, :50, NUM_MELS // 2 : NUM_MELS // 2 + NUM_MELS // 4] = mean
    torch.testing.assert_close(hidden, expected)


def sample(seconds: float = 0.3) -> Sample:
    return Sample("a", captions=("one",), audio=tone(seconds))


def view(kind: AudioAugmentation, **changes: object) -> TrainingView:
    settings: dict[str, object] = {
        "seed": 0,
        "augmentation": "none",
        "image": ImageTransform(8),
        "audio_augmentation": kind,
    }
    return TrainingView(**(settings | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", get_args(AudioAugmentation))
def test_a_sound_is_drawn_by_seed_epoch_and_sample_alone(kind: AudioAugmentation) -> None:
    def heard(item: tuple[int, int], seed: int = 0) -> torch.Tensor:
        audio = view(kind, seed=seed)(sample(), item).audio
        assert audio is not None
        return audio.samples

    first = heard((0, 0))
    assert torch.equal(first, heard((0, 0)))
    for other in (heard((1, 0)), heard((0, 1)), heard((0, 0), seed=1)):
        assert torch.equal(first, other) == (kind == "none")


def test_a_sound_is_identified_as_it_is_in_the_data() -> None:
    keys = [view(kind, identifies=True)(sample(), (0, 0)).keys["audio"] for kind in get_args(AudioAugmentation)]
    assert len(set(keys)) == 1


def test_a_sound_changes_no_other_draw() -> None:
    two = Sample("a", captions=tuple(f"caption {i}" for i in range(50)), audio=tone(0.1))
    assert [view("strong")(two, (0, i)).captions for i in range(9)] == [
        view("none")(two, (0, i)).captions for i in range(9)
    ]


def test_a_sample_without_a_sound_has_none() -> None:
    assert view("strong")(Sample("a", captions=("one",)), (0, 0)).audio is None
