"""Chance against simulation; the colour histogram knows colours and nothing else, the ridge baseline also places."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from PIL import Image

from impresa.evaluation.baselines import (
    ALPHA,
    ColourHistogramModel,
    PixelRidgeModel,
    colour_histogram,
    small_pixels,
)
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


def places(names: Iterable[str]) -> torch.Tensor:
    """Dark images with a light part at the named side."""
    boxes = {"left": (0, 0, 20, 40), "right": (20, 0, 40, 40), "top": (0, 0, 40, 20), "bottom": (0, 20, 40, 40)}
    images = []
    for name in names:
        image = Image.new("RGB", (40, 40), (20, 20, 20))
        image.paste((230, 230, 230), boxes[name])
        images.append(small_pixels(image))
    return torch.stack(images)


def test_pixels_are_means_of_parts_of_the_image() -> None:
    assert places(["left"]).shape == (1, 768)
    grid = places(["left"]).reshape(16, 16, 3)
    assert set(grid[:, :8].unique().tolist()) == {230}
    assert set(grid[:, 8:].unique().tolist()) == {20}


def test_ridge_model_finds_places() -> None:
    sides = ["left", "right", "top", "bottom"]
    model = PixelRidgeModel(places(sides * 5), [(f"light at the {side}", f"{side} side") for side in sides * 5])
    captions = [f"something {side}" for side in sides]
    metrics = retrieval_metrics(
        model.embed_images(places(sides)), model.embed_texts(captions), torch.arange(4), captions
    )
    assert metrics.image_to_text.recall_at[1] == 1.0
    assert metrics.text_to_image.recall_at[1] == 1.0


@pytest.mark.parametrize("num", [50, 900])
def test_ridge_model_equals_that_of_scikit_learn(num: int) -> None:
    """In both forms: with fewer images than pixels, and with more."""
    pytest.importorskip("sklearn")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge

    torch.manual_seed(0)
    words = ["Red", "a", "b2", "cat", "dog", "n\u00e4h", "red", "x"]
    captions = [" ".join(words[i] for i in torch.randint(8, (1 + i % 5,)).tolist()) for i in range(num)]
    pixels = torch.randint(0, 256, (num, 768), dtype=torch.uint8)
    model = PixelRidgeModel(pixels, [(caption,) for caption in captions])
    vectorizer = TfidfVectorizer(token_pattern=r"\w+")
    weights = vectorizer.fit_transform(captions).toarray()
    asked = [*captions[:20], "nothing known", "a cat, a CAT!"]
    order = [vectorizer.vocabulary_[word] for word in model._words._column]
    texts = vectorizer.transform(asked).toarray()[:, order]
    assert torch.allclose(model.embed_texts(asked), torch.from_numpy(texts), atol=1e-12)
    ridge = Ridge(alpha=ALPHA).fit(pixels.double() / 255, weights)
    predicted = torch.from_numpy(ridge.predict(pixels.double() / 255)[:, order])
    assert torch.allclose(model.embed_images(pixels), predicted, atol=1e-8)


def test_ridge_model_fits_captions_without_words_and_equal_images() -> None:
    model = PixelRidgeModel(places(["left"] * 3), [("!",), ("?", "..."), ("-",)])
    assert model.embed_images(places(["left"])).shape == (1, 0)
    captions = ["!", "?"]
    images, texts = model.embed_images(places(["left", "top"])), model.embed_texts(captions)
    metrics = retrieval_metrics(images, texts, torch.arange(2), captions)
    assert metrics.image_to_text.recall_at[1] == 0.0
