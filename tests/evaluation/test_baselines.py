"""Chance against simulation; the colour histogram knows colours and nothing else."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from PIL import Image

from impresa.evaluation.baselines import ColourHistogramModel, colour_histogram
from impresa.evaluation.retrieval import RightAnswers, chance, retrieval_metrics

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (250, 250, 250)}


def test_chance_is_one_in_n_without_repeats() -> None:
    guess = chance(RightAnswers(torch.arange(50), [str(i) for i in range(50)], 50))
    for direction in (guess.image_to_text, guess.text_to_image):
        assert direction.recall_at == {k: pytest.approx(k / 50) for k in (1, 5, 10)}
        assert direction.mean_rank == pytest.approx(25.5)
        assert direction.median_rank == 25


def test_chance_equals_the_mean_of_random_embeddings() -> None:
    torch.manual_seed(0)
    image_of_text = torch.arange(12).repeat_interleave(2)
    captions = [f"caption {i % 9}" for i in range(24)]
    guess = chance(RightAnswers(image_of_text, captions, 12))
    runs = [retrieval_metrics(torch.randn(12, 64), torch.randn(24, 64), image_of_text, captions) for _ in range(1500)]
    for direction in ("image_to_text", "text_to_image"):
        expected, found = getattr(guess, direction), [getattr(run, direction) for run in runs]
        assert sum(f.mean_rank for f in found) / len(found) == pytest.approx(expected.mean_rank, rel=0.02)
        for k in (1, 5, 10):
            assert sum(f.recall_at[k] for f in found) / len(found) == pytest.approx(expected.recall_at[k], abs=0.012)


def test_image_without_text_is_no_query() -> None:
    guess = chance(RightAnswers(torch.arange(2), ["a", "b"], 3))
    assert guess.image_to_text.num_queries == 2
    assert guess.image_to_text.recall_at[1] == pytest.approx(1 / 2)
    assert guess.text_to_image.recall_at[1] == pytest.approx(1 / 3)


def test_fewer_candidates_than_k() -> None:
    guess = chance(RightAnswers(torch.arange(3), ["a", "b", "c"], 3))
    assert guess.image_to_text.recall_at == {1: pytest.approx(1 / 3), 5: 1.0, 10: 1.0}


def test_histogram_of_one_colour_and_of_two() -> None:
    red = colour_histogram(Image.new("RGB", (30, 20), COLOURS["red"]))
    assert red.shape == (64,)
    assert red.max() == 1.0
    assert red.sum() == 1.0
    half = Image.new("RGB", (20, 20), COLOURS["red"])
    half.paste(COLOURS["blue"], (0, 0, 10, 20))
    assert sorted(colour_histogram(half).tolist())[-2:] == pytest.approx([0.5**0.5] * 2)


def test_histogram_does_not_see_places() -> None:
    left, right = (Image.new("RGB", (16, 16), COLOURS["white"]) for _ in range(2))
    left.paste(COLOURS["red"], (0, 4, 8, 12))
    right.paste(COLOURS["red"], (8, 4, 16, 12))
    assert torch.equal(colour_histogram(left), colour_histogram(right))


def scenes(names: Iterable[str], *, shade: int = 0) -> torch.Tensor:
    return torch.stack(
        [colour_histogram(Image.new("RGB", (8, 8), tuple(min(255, c + shade) for c in COLOURS[n]))) for n in names]
    )


def test_histogram_model_finds_colour_words() -> None:
    names = list(COLOURS) * 5
    model = ColourHistogramModel(scenes(names), [(f"a {n} square", f"something {n}") for n in names])
    captions = [f"look: a {n} thing" for n in COLOURS]
    images, texts = model.embed_images(scenes(COLOURS, shade=3)), model.embed_texts(captions)
    metrics = retrieval_metrics(images, texts, torch.arange(4), captions)
    assert metrics.image_to_text.recall_at[1] == 1.0
    assert metrics.text_to_image.recall_at[1] == 1.0


def test_histogram_model_fits_constant_images_and_unknown_words() -> None:
    model = ColourHistogramModel(scenes(["red"] * 3), [("one",), ("two",), ("three",)])
    assert torch.isfinite(model.embed_images(scenes(["blue"]))).all()
    assert torch.isfinite(model.embed_texts(["entirely unknown", ""])).all()
