"""Another backbone on top of a profile: what only the old one used is dropped with a line, unless it was typed."""

from __future__ import annotations

import logging

import pytest

from impresa.config import load_experiment
from impresa.config.encoder import EncoderConfig
from impresa.config.types import MemoryConfig
from impresa.errors import ConfigError

CLIP = "openai/clip-vit-base-patch32"
BOTH = [f"vision_encoder.backbone={CLIP}", f"text_encoder.backbone={CLIP}"]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_keys_of_the_profile_that_only_the_old_backbone_used_are_dropped_with_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    config = load_experiment("shapes", BOTH)
    vision = config.vision_encoder
    assert (vision.backbone, vision.embed_dim, vision.projection, vision.memory) == (CLIP, 128, "none", MemoryConfig())
    assert vision.dim == EncoderConfig().dim
    keys = ("dim", "depth", "num_heads")
    (line,) = lines(caplog)
    assert line == (
        ", ".join(f"text_encoder.{key}" for key in ("depth", "dim", "num_heads", "vocab_size"))
        + ", "
        + ", ".join(f"vision_encoder.{key}" for key in ("depth", "dim", "memory", "num_heads"))
        + " and vision_encoder.patch_size: left out, they were for the backbone that is replaced"
    )
    assert all(f"vision_encoder.{key}" in line for key in keys)


@pytest.mark.parametrize(
    "typed", ["vision_encoder.depth=2", "vision_encoder.memory.enabled=true", "+text_encoder.dim=8"]
)
def test_what_was_typed_stays_an_error(typed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment("shapes", [*BOTH, typed])
    assert [line.partition(":")[0] for line in caught.value.lines] == [typed.strip("+").partition("=")[0]]


def test_nothing_is_dropped_for_a_backbone_that_is_impossible_or_the_same(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert load_experiment("shapes", ["vision_encoder.backbone=vit"]) == load_experiment("shapes")
    with pytest.raises(ConfigError, match=r"^vision_encoder\.backbone: transformer is not for image"):
        load_experiment("shapes", ["vision_encoder.backbone=transformer"])
    with pytest.raises(ConfigError, match="is a key of the experiment dialect"):
        load_experiment("default", [BOTH[0]])
    assert lines(caplog) == []
