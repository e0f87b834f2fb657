"""The part of a tower that training does not change: what is kept of it, and that training behind it is the same."""

from __future__ import annotations

import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from impresa.config.decoder import PrefixTokens
from impresa.config.encoder import EncoderConfig
from impresa.encoders.frozen import PRECISION, frozen_part
from impresa.encoders.tower import Tower, Use
from impresa.encoders.vision import VisionEncoder
from tiny_hub import clip, dinov2, siglip

SIZE, DIM, EMBED = 32, 16, 8
PATCHES = (SIZE // 8) ** 2
SMALL = {"dim": DIM, "depth": 2, "num_heads": 2, "patch_size": 8, "embed_dim": EMBED, "freeze": True}
IMAGES = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def tower(**settings: Any) -> VisionEncoder:
    torch.manual_seed(0)
    return VisionEncoder(EncoderConfig(**{**SMALL, **settings}), SIZE).train()


def outputs(tower: Tower, use: Use) -> Any:
    if use == "tokens":
        return tower.read(IMAGES)
    return tower(IMAGES, return_tokens=use == "embedding and tokens")


FROM_A_RUN = {"checkpoint": "a run", "freeze": None}
CASES: dict[str, tuple[dict[str, Any], Use, int]] = {
    "own summary": ({}, "embedding", DIM),
    "summary, nothing to train before the head": ({"projection": "none"}, "embedding", DIM),
    "a mean, of which the tokens are not needed": ({"projection": "none", "pooling": "mean"}, "embedding", DIM),
    "attention pooling": ({"use_attention_pooling": True}, "embedding", PATCHES * DIM),
    "perceiver": ({"use_perceiver": True, "perceiver_num_heads": 2}, "embedding", PATCHES * DIM),
    "tokens for a fusion": ({}, "embedding and tokens", (1 + PATCHES) * DIM),
    "tokens for a decoder": ({}, "tokens", PATCHES * DIM),
    "whole": (FROM_A_RUN, "embedding", EMBED),
    "whole, with attention pooling": ({**FROM_A_RUN, "use_attention_pooling": True}, "embedding", EMBED),
    "whole, with tokens": (FROM_A_RUN, "embedding and tokens", EMBED + PATCHES * DIM),
    "whole, for a decoder": (FROM_A_RUN, "tokens", PATCHES * DIM),
    "convolutions": ({"backbone": "convnet", "depth": 3}, "embedding", 0),
}


@pytest.mark.parametrize("name", CASES)
def test_a_tower_gives_the_same_from_what_is_kept(name: str) -> None:
    settings, use, length = CASES[name]
    built = tower(**settings)
    if use == "tokens":
        built.keep("tokens", drop_last_block=False)
    part = frozen_part(built, use, IMAGES[:1])
    rows = part.encode(IMAGES)
    assert rows.dtype is PRECISION
    assert rows.shape == (3, part.row_length)
    assert part.row_length == (length or part.row_length)
    with torch.no_grad():
        direct, kept = outputs(built, use), part.finish(rows)
    for field in ("pooled", "tokens"):
        one, two = getattr(direct, field), getattr(kept, field)
        assert (one is None) == (two is None)
        if one is not None:
            torch.testing.assert_close(two, one, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("family", [clip, siglip, dinov2])
@pytest.mark.parametrize("settings", [{}, {"use_attention_pooling": True}, {"projection": "none"}])
def test_gradients_of_what_is_trained_behind_are_the_same(tmp_path: Path, family: Any, settings: dict) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(backbone=str(family(tmp_path / "model")), embed_dim=8, freeze=True, **settings)
    built = VisionEncoder(config, SIZE).train()
    part = frozen_part(built, "embedding", IMAGES[:1])
    trained = [parameter for parameter in built.parameters() if parameter.requires_grad]
    found = []
    for output in (built(IMAGES), part.finish(part.encode(IMAGES))):
        loss = output.pooled.square().mean()
        found.append(torch.autograd.grad(loss, trained) if trained else [output.pooled])
    for one, two in zip(*found, strict=True):
        assert (one - two).norm() < 2e-3 * one.norm()


@pytest.mark.parametrize("which", ["tokens", "memory"])
def test_memory_tokens_are_kept_where_a_decoder_reads_them(which: PrefixTokens) -> None:
    from impresa.config.types import MemoryConfig

    built = tower(memory=MemoryConfig(enabled=True, dim=DIM, num_memory_tokens=3), **FROM_A_RUN)
    built.keep(which, drop_last_block=False)
    part = frozen_part(built, "tokens", IMAGES[:1])
    assert part.row_length == (3 if which == "memory" else PATCHES) * DIM
    torch.testing.assert_close(part.finish(part.encode(IMAGES)).tokens, built.read(IMAGES).tokens, rtol=2e-3, atol=2e-3)


def test_it_is_copied_and_sent_with_its_tower() -> None:
    built = tower(**FROM_A_RUN)
    built.part_of_it = frozen_part(built, "embedding", IMAGES[:1])  # type: ignore[assignment]
    rows = built.part_of_it.encode(IMAGES)
    for other in (deepcopy(built), pickle.loads(pickle.dumps(built))):
        assert other.part_of_it.tower is other
        assert torch.equal(other.part_of_it.encode(IMAGES), rows)
