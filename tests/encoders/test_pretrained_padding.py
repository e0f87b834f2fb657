"""What pads a sound for a pretrained tower is its own affair: the clips beside it never change an embedding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny_hub
from impresa.config.encoder import EncoderConfig
from impresa.data.audio import Clip, PretrainedAudioTransform
from impresa.encoders.audio import AudioEncoder

FAMILIES: dict[str, Callable[[Path], Path]] = {
    "whisper": tiny_hub.whisper,
    "clap": tiny_hub.clap,
    "clap_fused": lambda folder: tiny_hub.clap(folder, fused=True),
    "ast": tiny_hub.ast,
}
MASKED = ("whisper", "ast")
CONFIG = EncoderConfig(embed_dim=12, num_heads=2, perceiver_num_latents=3, perceiver_num_layers=2)
CONFIG = replace(CONFIG, perceiver_num_heads=2)
POOLINGS = {
    "auto": CONFIG,
    "mean": replace(CONFIG, pooling="mean"),
    "attention": replace(CONFIG, use_attention_pooling=True),
    "perceiver": replace(CONFIG, use_perceiver=True),
}
SHORT, LONG = 0.13, 0.9
"""Seconds of a clip that ends within a patch, and of one that fills more of every tower, or all of it."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("hub")
    return {name: str(make(root / name)) for name, make in FAMILIES.items()}


def tone() -> Clip:
    return Clip(0.3 * torch.sin(torch.arange(int(SHORT * 16_000)) * 2 * torch.pi * 500 / 16_000), 16_000)


def noise() -> Clip:
    return Clip(0.1 * torch.randn(int(LONG * 16_000), generator=torch.Generator().manual_seed(0)), 16_000)


def tower(folder: str, pooling: str) -> AudioEncoder:
    return AudioEncoder(replace(POOLINGS[pooling], backbone=folder), num_mels=1, max_frames=1).eval()


def features_of(folder: str, *clips: Clip) -> tuple[Tensor, Tensor]:
    return PretrainedAudioTransform.from_backbone(folder, max_seconds=10)(clips)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_clip_beside_a_longer_one_is_as_it_is_alone(hub: dict[str, str], family: str, pooling: str) -> None:
    """From the waveform: each family brings every clip to one length, whatever the others of its batch have."""
    encoder, short, long = tower(hub[family], pooling), tone(), noise()
    alone = encoder(*features_of(hub[family], short)).pooled[0]
    longer = encoder(*features_of(hub[family], long)).pooled[0]
    for order, (first, second) in {(short, long): (alone, longer), (long, short): (longer, alone)}.items():
        together = encoder(*features_of(hub[family], *order)).pooled
        torch.testing.assert_close(together[0], first, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together[1], second, rtol=1e-5, atol=1e-5)
    assert (alone - longer).abs().max() > 1e-3  # not because it hears nothing


@pytest.mark.parametrize("pooling", ["mean", "attention", "perceiver"])
@pytest.mark.parametrize("family", MASKED)
def test_tokens_of_padding_are_never_pooled(hub: dict[str, str], family: str, pooling: str) -> None:
    """Whisper and AST were trained to see their padding, so that it tells on the real tokens; but only those count."""
    encoder = tower(hub[family], pooling)
    audio, mask = features_of(hub[family], tone(), noise())
    features = encoder.backbone(audio, mask)
    other = torch.where(features.mask[..., None], features.tokens, 9 * torch.randn_like(features.tokens))
    expected = encoder(audio, mask).pooled
    found = encoder.embed(replace(features, tokens=other), return_tokens=False).pooled
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(encoder(audio).pooled[0], expected[0], atol=1e-3)  # the mask is what does it


@pytest.mark.parametrize("family", ["clap", "clap_fused"])
def test_clap_repeats_a_short_clip_so_that_nothing_is_padding(hub: dict[str, str], family: str) -> None:
    audio, mask = features_of(hub[family], tone(), noise())
    assert mask.all()
    encoder = tower(hub[family], "mean")
    torch.testing.assert_close(encoder(audio, mask).pooled, encoder(audio).pooled, rtol=0, atol=0)
