"""`unfreeze_last` and `lora` of a tower: where they are read, what contradicts them, and where they do nothing."""

from __future__ import annotations

import pytest

from impresa.config import ExperimentConfig
from impresa.config.compose import with_overrides
from impresa.config.decoder import TowerLoraConfig
from impresa.config.relevance import notices
from impresa.errors import ConfigError

LORA = "vision_encoder.lora={}"
CLIP = "vision_encoder.backbone=openai/clip-vit-base-patch32"


def test_adapters_are_asked_for_by_a_key_of_theirs_or_by_an_empty_mapping() -> None:
    assert with_overrides(ExperimentConfig(), [CLIP]).vision_encoder.lora is None
    assert with_overrides(ExperimentConfig(), [CLIP, LORA]).vision_encoder.lora == TowerLoraConfig()
    config = with_overrides(
        ExperimentConfig(), [CLIP, "vision_encoder.lora.r=4", "vision_encoder.lora.target_modules=q_proj"]
    )
    assert config.vision_encoder.lora == TowerLoraConfig(r=4, target_modules="q_proj")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["text_encoder.lora.r=4"], "text_encoder.lora: adapts a pretrained backbone, and transformer is none; "),
        ([CLIP, LORA, "vision_encoder.freeze=false"], "vision_encoder.freeze: false contradicts vision_encoder.lora, "),
        ([CLIP, LORA, "vision_encoder.unfreeze_last=1"], "vision_encoder.unfreeze_last: 1 contradicts vision_enc"),
        ([CLIP, "vision_encoder.lora.rank=1"], "vision_encoder.lora.rank: unknown key"),
        ([CLIP, "vision_encoder.unfreeze_last=-1"], "vision_encoder.unfreeze_last: got -1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_overrides(ExperimentConfig(), overrides)
    assert [found.startswith(line) for found in caught.value.lines] == [True], caught.value.lines


FROZEN = "vision_encoder.freeze=true"
RECOMPUTE = "vision_encoder.activation_checkpointing=true"


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (
            [CLIP, "vision_encoder.unfreeze_last=2"],
            ["vision_encoder.unfreeze_last: is for a frozen tower (vision_encoder.freeze)"],
        ),
        ([CLIP, "vision_encoder.unfreeze_last=2", FROZEN, RECOMPUTE], []),
        ([CLIP, FROZEN, RECOMPUTE], ["vision_encoder.activation_checkpointing: does nothing in a frozen tower"]),
        ([CLIP, LORA, RECOMPUTE], []),
        (
            [CLIP, LORA, "optimization.lr_pretrained=1e-5"],
            ["optimization.lr_pretrained: does nothing without a pretrained tower that is trained"],
        ),
        ([CLIP, "vision_encoder.unfreeze_last=1", FROZEN, "optimization.lr_pretrained=1e-5"], []),
    ],
)  # fmt: skip
def test_what_does_nothing_is_named(overrides: list[str], lines: list[str]) -> None:
    assert notices(with_overrides(ExperimentConfig(), overrides)) == lines
