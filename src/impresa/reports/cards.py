"""The examples of an evaluation as pictures: a query with what it found, or a question with its answer."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from impresa.data.image_files import open_image
from impresa.evaluation.gallery import Answer, AnsweredQuestion, Example, Gallery
from impresa.foreign_text import markdown

_TILE_PX, _GAP_PX, _LINE_PX, _FONT_PX = 112, 8, 18, 13
_TEXT_PX, _LETTERS = 400, 56
"""Width of a column of text."""
_BACKGROUND, _INK, _SOFT, _RIGHT, _WRONG = "white", "#222222", "#777777", "#1a7f37", "#cf222e"


@dataclass(frozen=True)
class Card:
    """One example."""

    picture: Image.Image
    text: str
    """Markdown: what the picture shows, in words."""


class _Line(NamedTuple):
    text: str
    colour: str = _INK


def cards(gallery: Gallery) -> Iterator[Card]:
    """Queries by image, queries by text, and questions, each in the gallery's order."""
    for query in gallery.image_queries:
        found = [_Line(f"{a.score:.2f}  {a.caption or ''}", _colour(right=a.right)) for a in query.answers]
        lines = [_Line(f"right: {query.captions[0]}", _SOFT), *found]
        yield Card(_beside(query.image, lines), _text_of_image_query(query))
    for query in gallery.text_queries:
        yield Card(_above(query.captions[0], query.answers), _text_of_text_query(query))
    for asked in gallery.questions:
        answer = _Line(asked.answer or "(nothing)", _colour(right=asked.right))
        lines = [_Line(asked.question), answer, _Line(f"right: {asked.expected}", _SOFT)]
        yield Card(_beside(asked.image, lines), _text_of_question(asked))


def _text_of_image_query(query: Example) -> str:
    found = (
        f"{n}. {_mark(right=a.right)} {markdown(a.caption or '')} ({a.score:.2f})"
        for n, a in enumerate(query.answers, 1)
    )
    return "\n".join((f"Right: {markdown(query.captions[0])}\n", *found))


def _text_of_text_query(query: Example) -> str:
    found = ", ".join(f"{_mark(right=a.right)} {a.score:.2f}" for a in query.answers)
    return f"{markdown(query.captions[0])}\n\nFound, from the left: {found}"


def _text_of_question(asked: AnsweredQuestion) -> str:
    answer = f"{_mark(right=asked.right)} {markdown(asked.answer or '(nothing)')}"
    return f"{markdown(asked.question)}\n\n{answer}\n\nRight: {markdown(asked.expected)}"


def _beside(picture: str | None, lines: Sequence[_Line]) -> Image.Image:
    """Lines to the right of a picture."""
    wrapped = [_Line(part, line.colour) for line in lines for part in _wrapped(line.text)]
    left = 0 if picture is None else _TILE_PX + _GAP_PX
    height = max(0 if picture is None else _TILE_PX, _LINE_PX * len(wrapped))
    card = Image.new("RGB", (left + _TEXT_PX + 2 * _GAP_PX, height + 2 * _GAP_PX), _BACKGROUND)
    if picture is not None:
        _paste(card, picture, (_GAP_PX, _GAP_PX))
    _write(card, wrapped, (left + _GAP_PX, _GAP_PX))
    return card


def _above(caption: str, answers: Sequence[Answer]) -> Image.Image:
    """A caption above a row of pictures, each with a frame that says if it is right, and its score."""
    lines = [_Line(part) for part in _wrapped(caption)]
    step, top = _TILE_PX + _GAP_PX, _GAP_PX + _LINE_PX * len(lines)
    width = max(_TEXT_PX, step * len(answers)) + _GAP_PX
    card = Image.new("RGB", (width, top + _TILE_PX + _LINE_PX + 2 * _GAP_PX), _BACKGROUND)
    _write(card, lines, (_GAP_PX, _GAP_PX))
    for number, answer in enumerate(answers):
        left, colour = _GAP_PX + number * step, _colour(right=answer.right)
        if answer.image is not None:
            _paste(card, answer.image, (left, top + 2))
        frame = (left - 3, top - 1, left + _TILE_PX + 2, top + _TILE_PX + 4)
        ImageDraw.Draw(card).rectangle(frame, outline=colour, width=2)
        _write(card, [_Line(f"{answer.score:.2f}", colour)], (left, top + _TILE_PX + 6))
    return card


def _paste(card: Image.Image, data_uri: str, place: tuple[int, int]) -> None:
    with open_image(io.BytesIO(base64.b64decode(data_uri.partition(",")[2]))) as opened:
        picture = opened.convert("RGB")
    scale = _TILE_PX / max(picture.size)
    size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    card.paste(picture.resize(size), place)


def _write(card: Image.Image, lines: Sequence[_Line], place: tuple[int, int]) -> None:
    draw, font = ImageDraw.Draw(card), ImageFont.load_default(_FONT_PX)
    for number, line in enumerate(lines):
        draw.text((place[0], place[1] + number * _LINE_PX), line.text, fill=line.colour, font=font)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _LETTERS, max_lines=4, placeholder=" ...") or [""]


def _colour(*, right: bool) -> str:
    return _RIGHT if right else _WRONG


def _mark(*, right: bool) -> str:
    return "✓" if right else "✗"
