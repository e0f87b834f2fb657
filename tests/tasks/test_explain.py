"""`explain` of a model in use: its arguments, its maps, and towers that give nothing away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import impresa
from impresa.errors import ConfigError, DataError
from impresa.inside.explanation import Maps
from impresa.tasks.alignment.embedder import EmbeddingModel
from tiny_run import finished_run
from tiny_vlm import picture


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    found = impresa.load(finished_run(), "cpu")
    assert isinstance(found, EmbeddingModel)
    return found


def test_images_in_any_form_are_explained_alike(model: EmbeddingModel, tmp_path: Path) -> None:
    image = picture(1, 40)
    image.save(tmp_path / "a.png")
    forms: list[Any] = [image, tmp_path / "a.png", str(tmp_path / "a.png"), np.asarray(image)]
    for form in forms:
        sections = model.explain(form, "red").sections
        assert [section.title for section in sections][:2] == ["Text", "CLS"]
        first = sections[1]
        assert isinstance(first, Maps)
        torch.testing.assert_close(first.tiles[0].values, _cls(model, image))


def _cls(model: EmbeddingModel, image: Image.Image) -> torch.Tensor:
    section = next(section for section in model.explain(image).sections if section.title == "CLS")
    assert isinstance(section, Maps)
    return section.tiles[0].values


def test_looking_changes_no_embedding(model: EmbeddingModel) -> None:
    before = model.encode_image(picture(1))
    model.explain(picture(1), "red", method="rollout")
    assert torch.equal(model.encode_image(picture(1)), before)


@pytest.mark.parametrize(
    ("image", "words", "line"),
    [
        ("none.png", None, "image: none.png: there is no such file"),
        (torch.zeros(3, 16, 16), None, "image: a tensor of torch.float32"),
        (picture(1), " ", "words: are empty"),
        (picture(1), "\ud800", "words: is not UTF-8"),
        (picture(1), 3, "words: got int"),
    ],
)
def test_what_cannot_be_explained_is_one_line(model: EmbeddingModel, image: Any, words: Any, line: str) -> None:
    with pytest.raises(DataError) as fault:
        model.explain(image, words)
    assert str(fault.value).startswith(line)


def test_a_tower_that_gives_no_weights_away_is_explained_by_the_text_alone(
    model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("impresa.layers.recording._keep_own", lambda *_: None)  # as of another library
    with pytest.raises(ConfigError, match="attention of VisionTransformer cannot be shown"):
        model.explain(picture(1))
    found = model.explain(picture(1), "red")
    assert [section.title for section in found.sections] == ["Text"]
    assert found.notes[0].startswith("vision_encoder.backbone: the attention of VisionTransformer cannot be shown")
