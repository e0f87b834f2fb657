"""Examples of an evaluation as pictures: what is right is green, what is wrong is red, and everything has room."""

from __future__ import annotations

import numpy as np
from PIL import Image

from impresa.evaluation.gallery import Answer, AnsweredQuestion, Example, Gallery
from impresa.reports.cards import _RIGHT, _WRONG, cards
from impresa.reports.pictures import data_uri

RED = data_uri(Image.new("RGB", (8, 8), "red"))
WIDE = data_uri(Image.new("RGB", (30, 4), "blue"))


def colours(picture: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in np.asarray(picture).reshape(-1, 3).tolist()}


def rgb(name: str) -> tuple[int, ...]:
    return Image.new("RGB", (1, 1), name).getpixel((0, 0))  # type: ignore[return-value]


def test_a_query_stands_with_what_it_found() -> None:
    answers = (Answer(0.9, True, image=WIDE), Answer(0.5, False, image=RED))
    texts = (Answer(0.9, False, caption="a *cat*"), Answer(0.5, False, caption="a dog"))
    gallery = Gallery(
        image_queries=(Example(("a red square",), RED, texts),), text_queries=(Example(("blue",), None, answers),)
    )
    by_image, by_text = cards(gallery)
    assert by_image.text == "Right: a red square\n\n1. ✗ a \\*cat\\* (0.90)\n2. ✗ a dog (0.50)"
    assert {(255, 0, 0), rgb(_WRONG)} <= colours(by_image.picture)
    assert rgb(_RIGHT) not in colours(by_image.picture)
    assert by_text.text == "blue\n\nFound, from the left: ✓ 0.90, ✗ 0.50"
    assert {(255, 0, 0), (0, 0, 255), rgb(_RIGHT), rgb(_WRONG)} <= colours(by_text.picture)


def test_a_question_stands_with_its_answer_also_without_a_picture_and_at_any_length() -> None:
    asked = AnsweredQuestion(RED, "what?", "two", "two", right=True)
    long = AnsweredQuestion(None, "why " * 500, "x" * 500, "", right=False)
    first, second = cards(Gallery(questions=(asked, long)))
    assert {(255, 0, 0), rgb(_RIGHT)} <= colours(first.picture)
    assert first.text == "what?\n\n✓ two\n\nRight: two"
    assert "✗ (nothing)" in second.text
    assert second.picture.height < 400
    assert list(cards(Gallery())) == []
