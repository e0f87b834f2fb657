"""Points of a map: what is one point, what belongs together, what is left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from fake_model import COLOURS, ColourModel, ListSource, colour_source
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.config.losses import FUSED_PAIR
from impresa.data.audio import Clip
from impresa.data.sample import Sample
from impresa.data.sources import BadSample
from impresa.embedding_map import points as module
from impresa.embedding_map.points import Points, collect_points
from impresa.errors import DataError


def collected(*sources: ListSource, model: Any = None, limit: int = 100) -> Points:
    named = {f"split {number}": source for number, source in enumerate(sources)}
    return collect_points(model or ColourModel(), named, data="squares", limit=limit, batch_size=4)


def square(id: str, colour: str, *captions: str, **more: Any) -> Sample:
    return Sample(id, Image.new("RGB", (8, 8), COLOURS[colour]), captions, **more)


def test_each_image_and_each_text_is_a_point_with_its_own_embedding() -> None:
    source = colour_source(6)
    found = collected(source)
    assert [point.modality for point in found.items] == ["image"] * 6 + ["text"] * 6
    assert found.rows_of("text") == list(range(6, 12))
    model = ColourModel()
    for row, sample in enumerate(source.items):
        image, text = found.vectors[row], found.vectors[6 + row]
        expected = model.preprocessing.image(sample.image)
        torch.testing.assert_close(image, (expected / expected.norm()).double())
        assert torch.cosine_similarity(text, model.encode_text(list(sample.captions))[0].double(), dim=0) > 0.999
        assert found.items[row].id == found.items[6 + row].id == sample.id
    assert found.summary() == "12 points: 6 images, 6 texts"


def test_equal_images_are_one_point_and_so_are_equal_texts() -> None:
    samples = [
        square("a", "red", "red one", label="warm"),
        square("b", "red", "red two", "colour", label="warm"),
        square("c", "blue", "colour", label="cold"),
    ]
    found = collected(ListSource(list(samples)))
    red, blue, one, two, both = found.items
    assert (red.id, list(red.captions), list(red.partners)) == ("a", ["red one", "red two", "colour"], [2, 3, 4])
    assert (list(blue.partners), list(one.partners), list(two.partners)) == ([4], [0], [0])
    assert (list(both.captions), list(both.partners)) == (["colour"], [0, 1])
    assert [point.label for point in found.items] == ["warm", "cold", "warm", "warm", None]  # "colour" has both


def test_the_same_image_in_two_splits_is_two_points() -> None:
    found = collected(ListSource([square("a", "red", "red")]), ListSource([square("b", "red", "red")]))
    assert [(point.split, point.modality) for point in found.items] == [
        ("split 0", "image"), ("split 1", "image"), ("split 0", "text"), ("split 1", "text")
    ]  # fmt: skip


def test_bad_samples_are_skipped_and_listed() -> None:
    items = [BadSample("broken", "no picture"), Sample("empty", None, ("nothing",)), square("good", "red", "red")]
    found = collected(ListSource(items))
    assert [(note.id, note.reason) for note in found.bad] == [("broken", "no picture"), ("empty", "no image")]
    assert [point.id for point in found.items] == ["good", "good"]
    with pytest.raises(DataError, match=r"squares: no usable sample \(broken: no picture\); `impresa data check PATH`"):
        collected(ListSource(items[:1]))


def test_the_limit_is_shared_evenly_and_taken_at_even_distances() -> None:
    found = collected(colour_source(24), colour_source(2), limit=8)
    ids = [(point.split, point.id) for point in found.items if point.modality == "image"]
    assert ids == [
        *[("split 0", f"square-{number}") for number in (0, 4, 8, 12, 16, 20)],
        *[("split 1", f"square-{number}") for number in (0, 1)],
    ]
    assert (found.num_samples, found.num_left_out) == (8, 18)


def test_texts_are_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TEXTS_PER_SAMPLE", 2)
    found = collected(colour_source(4, captions=5), limit=4)
    assert (len(found.rows_of("text")), found.num_texts_left_out) == (8, 12)


def test_embeddings_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="image embeddings: 6 of 6 are NaN or infinite"):
        collected(colour_source(6), model=ColourModel(broken=True))


@dataclass
class HearingModel(ColourModel):
    """Embeds a sound as its first three samples, and a pair as the sum of its parts."""

    def encode_audio(self, sounds: list[Clip], *, batch_size: int = 32) -> Tensor:
        return torch.stack([sound.samples for sound in sounds])

    def encode_image_audio(self, images: list[Tensor], sounds: list[Clip], *, batch_size: int = 32) -> Tensor:
        return torch.stack(images) + self.encode_audio(sounds)


def test_sounds_and_pairs_are_points_where_the_model_takes_them() -> None:
    tone = Clip(torch.tensor([1.0, 0, 0]), 16_000)
    samples = [square("a", "red", "red", audio=tone), Sample("b", None, ("a tone",), audio=tone)]
    config = replace(ExperimentConfig(), audio_encoder=EncoderConfig(backbone="spectrogram"))
    found = collected(ListSource(list(samples)), model=HearingModel(config=config))
    assert [(point.modality, list(point.partners)) for point in found.items] == [
        ("image", [2]), ("audio", [2, 3]), ("text", [0, 1]), ("text", [1])
    ]  # fmt: skip
    config = replace(config, losses=replace(config.losses, pairs=("image-text", FUSED_PAIR)))
    found = collected(ListSource(list(samples)), model=HearingModel(config=config))
    assert [point.modality for point in found.items] == ["image", "audio", "image+audio", "text", "text"]
    assert [point.thumbnail is not None for point in found.items] == [True, False, True, False, False]
    assert found.summary() == "5 points: 1 images, 2 texts, 1 sounds, 1 pairs of image and sound"


def test_data_of_images_and_labels_alone_are_drawn_too() -> None:
    found = collected(ListSource([square("a", "red", label="warm"), square("b", "blue", label="cold")]))
    assert [(point.modality, point.label) for point in found.items] == [("image", "warm"), ("image", "cold")]
