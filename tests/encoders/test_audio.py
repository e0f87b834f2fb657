"""The audio encoder: patches of log-mel features, positions, masks, and clips of every length."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from impresa.config.encoder import EncoderConfig
from impresa.data.audio import Clip, LogMelTransform
from impresa.encoders.audio import AudioEncoder, SpectrogramTransformer
from impresa.errors import ConfigError, DataError

MELS, FRAMES = 32, 50
CONFIG = EncoderConfig(
    backbone="spectrogram", dim=16, depth=2, num_heads=2, patch_size=8, embed_dim=12, perceiver_num_latents=4,
    perceiver_num_layers=2, perceiver_num_heads=2,
)  # fmt: skip
VARIANTS = {
    "mean": CONFIG,
    "attention": replace(CONFIG, use_attention_pooling=True),
    "perceiver": replace(CONFIG, use_perceiver=True),
    "plain": replace(CONFIG, projection="none"),
}


def _encoder(config: EncoderConfig = CONFIG) -> AudioEncoder:
    return AudioEncoder(config, num_mels=MELS, max_frames=FRAMES)


def _mask(*lengths: int) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_runs_and_reaches_every_parameter(name: str) -> None:
    encoder = _encoder(VARIANTS[name])
    output = encoder(torch.randn(3, FRAMES, MELS), _mask(50, 20, 3), return_tokens=True)
    num_tokens = 4 if name == "perceiver" else 7 * 4
    assert output.pooled.shape == (3, 12)
    assert output.tokens.shape == (3, num_tokens, 16)
    output.pooled.square().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_never_changes_a_result(name: str) -> None:
    """A clip alone, and beside a longer one with noise where its padding is: also when it ends within a patch."""
    encoder = _encoder(VARIANTS[name]).eval()
    for length in (3, 8, 21):
        clip = torch.randn(1, length, MELS)
        batch = torch.cat(
            (torch.cat((clip, 9 * torch.randn(1, FRAMES - length, MELS)), dim=1), torch.randn(1, FRAMES, MELS))
        )
        alone = encoder(clip).pooled[0]
        torch.testing.assert_close(encoder(clip, _mask(length)).pooled[0], alone, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(encoder(batch, _mask(length, FRAMES)).pooled[0], alone, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(encoder(batch).pooled[0], alone, atol=1e-3)


def test_a_patch_is_real_when_any_of_its_frames_is() -> None:
    features = _encoder().backbone(torch.randn(3, 20, MELS), _mask(20, 9, 8))
    assert features.tokens.shape == (3, 3 * 4, 16)
    assert features.mask.sum(dim=1).tolist() == [12, 8, 4]
    assert features.mask[1].tolist() == [True] * 8 + [False] * 4  # time goes first, then pitch


def test_patches_are_read_in_order_of_time_and_pitch() -> None:
    """Token (t, p) is the map of frames 8t to 8t + 7 and bins 8p to 8p + 7, plus its two positions."""
    backbone = SpectrogramTransformer(replace(CONFIG, depth=1), num_mels=MELS, max_frames=FRAMES)
    audio = torch.randn(1, 16, MELS)
    entering = []
    backbone.transformer.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    backbone(audio)
    patch = audio[0, 8:16, 24:32].reshape(-1)
    expected = backbone.patch_embedding(patch) + backbone.times[1, 0] + backbone.pitches[3]
    torch.testing.assert_close(entering[0][0, 4 + 3], expected)


def test_time_and_pitch_matter() -> None:
    encoder = _encoder().eval()
    audio = torch.randn(1, 48, MELS)
    for turned in (audio.flip(1), audio.roll(8, dims=2)):
        assert not torch.allclose(encoder(audio).pooled, encoder(turned).pooled, atol=1e-4)


def test_clips_of_every_length_pass_from_the_waveform() -> None:
    config = replace(CONFIG, patch_size=16, audio_max_seconds=0.5)
    transform = LogMelTransform(config.audio_max_seconds)
    encoder = AudioEncoder(config, num_mels=128, max_frames=transform.max_frames).eval()
    clips = [Clip(torch.randn(int(seconds * 8_000)), 8_000) for seconds in (0.002, 0.1, 3.0)]
    together = encoder(*transform(clips)).pooled
    for clip, embedding in zip(clips, together, strict=True):
        torch.testing.assert_close(encoder(*transform([clip])).pooled[0], embedding, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="patch_size: 5 does not divide the 32 mel bins"):
        _encoder(replace(CONFIG, patch_size=5))
    with pytest.raises(DataError, match="51 frames of 32 bins do not fit the tower; cut them to 50 frames of 32 bins"):
        _encoder()(torch.randn(1, 51, MELS))
    with pytest.raises(DataError, match="50 frames of 16 bins"):
        _encoder()(torch.randn(1, 50, 16))
