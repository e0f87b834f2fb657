"""An explanation as one PNG picture: cards side by side, in as many rows as it takes.

Lengths are inches, counted from the left and from the top.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from impresa.foreign_text import printable
from impresa.inside.drawing import COLOURS, overlay
from impresa.inside.explanation import Bars, Explanation, Maps, Section, Strips, Table

COLUMNS = 6
DPI = 130
_TILE, _GAP, _MARGIN = 1.6, 0.16, 0.4
_LINE, _LABEL = 0.17, 0.2
_WIDTH = 2 * _MARGIN + COLUMNS * (_TILE + _GAP) - _GAP
_INK, _SOFT, _BLUE = "#1c2430", "#5c6675", "#2563eb"
_CELLS = 8
"""Columns of a table that fit beside the names of its rows; more are continued below."""


def explanation_png(explanation: Explanation) -> bytes:
    """The content of the PNG file."""
    cards = list(_cards(explanation))
    rows = list(_in_rows(cards))
    headline = textwrap.wrap(printable(explanation.headline), 85)
    foot = [line for note in explanation.notes for line in textwrap.wrap(printable(note), 150)]
    top = _MARGIN + 0.26 * len(headline) + (0.15 if headline else 0)
    height = top + sum(map(_height, rows)) + _LINE * len(foot) + _MARGIN / 2
    sheet = _Sheet(height)
    for i, line in enumerate(headline):
        sheet.text(_MARGIN, _MARGIN - 0.1 + 0.26 * i, line, size=14, weight="bold")
    for row in rows:
        left = _MARGIN
        head = max(card.head for card in row)
        for card in row:
            card.draw(sheet, left, top, head)
            left += card.columns * (_TILE + _GAP)
        top += _height(row)
    for i, line in enumerate(foot):
        sheet.text(_MARGIN, top + _LINE * i, line, colour=_SOFT)
    return sheet.png()


class _Sheet:
    def __init__(self, height: float) -> None:
        self.height = height
        self.figure = Figure(figsize=(_WIDTH, height), dpi=DPI, facecolor="white")

    def text(
        self, left: float, top: float, text: str, *, size: float = 8.5, colour: str = _INK, weight: str = "normal",
        align: str = "left",
    ) -> None:  # fmt: skip
        at = left / _WIDTH, 1 - top / self.height
        style: Any = {"size": size, "color": colour, "weight": weight, "ha": align, "va": "top"}
        self.figure.text(*at, text, parse_math=False, **style)

    def image(self, left: float, top: float, width: float, height: float, pixels: object) -> None:
        box = (left / _WIDTH, 1 - (top + height) / self.height, width / _WIDTH, height / self.height)
        axes = self.figure.add_axes(box)
        axes.imshow(np.asarray(pixels), aspect="auto", interpolation="nearest")
        axes.set_axis_off()

    def box(self, left: float, top: float, width: float, height: float, colour: object) -> None:
        if width > 0:
            self.image(left, top, width, height, [[colour]])

    def png(self) -> bytes:
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # letters that the font lacks become boxes
            self.figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


class _Card(ABC):
    """Something with a title and a note above it, `columns` wide."""

    def __init__(self, title: str, note: str, columns: int) -> None:
        self.columns = columns
        self.width = columns * (_TILE + _GAP) - _GAP
        self.title = title
        self.lines = textwrap.wrap(note, int(self.width * 15.5))
        self.head = 0.24 + _LINE * len(self.lines) + 0.08

    @property
    @abstractmethod
    def body(self) -> float:
        """Height of what stands below title and note."""

    def draw(self, sheet: _Sheet, left: float, top: float, head: float) -> None:
        """The card with its top left corner there, and its body `head` below, as high as those beside it."""
        sheet.text(left, top, self.title, size=11, weight="bold")
        for i, line in enumerate(self.lines):
            sheet.text(left, top + 0.24 + _LINE * i, line, colour=_SOFT)
        self.fill(sheet, left, top + head)

    @abstractmethod
    def fill(self, sheet: _Sheet, left: float, top: float) -> None: ...


class _Pictures(_Card):
    def __init__(self, title: str, note: str, pictures: Sequence[tuple[str, Image.Image]]) -> None:
        super().__init__(title, note, min(len(pictures), COLUMNS))
        self.pictures = pictures

    @property
    def body(self) -> float:
        return -(-len(self.pictures) // COLUMNS) * (_TILE + _LABEL + 0.1)

    def fill(self, sheet: _Sheet, left: float, top: float) -> None:
        for i, (label, picture) in enumerate(self.pictures):
            row, column = divmod(i, COLUMNS)
            x, y = left + column * (_TILE + _GAP), top + row * (_TILE + _LABEL + 0.1)
            wide, high = (side * _TILE / max(picture.size) for side in picture.size)
            sheet.image(x, y + (_TILE - high), wide, high, picture)
            sheet.text(x, y + _TILE + 0.03, _short(label, 25), size=8, colour=_SOFT)


class _Bars(_Card):
    def __init__(self, section: Bars) -> None:
        super().__init__(section.title, section.note, COLUMNS // 2)
        self.shares = section.shares

    @property
    def body(self) -> float:
        return _LABEL * len(self.shares)

    def fill(self, sheet: _Sheet, left: float, top: float) -> None:
        largest = max(self.shares.values()) or 1.0
        for i, (name, share) in enumerate(self.shares.items()):
            y = top + _LABEL * i
            sheet.text(left, y, name)
            sheet.box(left + 0.9, y + 0.01, share / largest * (self.width - 1.5), _LABEL - 0.06, (0.15, 0.39, 0.92))
            sheet.text(left + self.width, y, f"{share:.1%}", align="right", colour=_SOFT)


class _Strips(_Card):
    def __init__(self, section: Strips) -> None:
        super().__init__(section.title, section.note, COLUMNS)
        self.names, self.values = section.names, section.values.numpy(force=True)

    @property
    def body(self) -> float:
        return (_LABEL + 0.04) * len(self.names)

    def fill(self, sheet: _Sheet, left: float, top: float) -> None:
        for i, name in enumerate(self.names):
            y = top + (_LABEL + 0.04) * i
            row = self.values[i : i + 1]
            sheet.text(left, y, _short(name, 14))
            sheet.image(left + 1.1, y, self.width - 1.1, _LABEL, colormaps[COLOURS](row / (row.max() or 1)))


class _Table(_Card):
    def __init__(self, table: Table) -> None:
        super().__init__(table.title, table.note, COLUMNS // 2 if len(table.columns) <= _CELLS // 2 else COLUMNS)
        self.table = table
        num = len(table.columns)
        self.parts = [range(start, min(start + _CELLS, num)) for start in range(0, num, _CELLS)]

    @property
    def body(self) -> float:
        return len(self.parts) * (0.24 * (len(self.table.rows) + 1) + 0.1)

    def fill(self, sheet: _Sheet, left: float, top: float) -> None:
        wide = (self.width - 1.4) / min(_CELLS, len(self.table.columns))
        for part in self.parts:
            for column, index in enumerate(part):
                sheet.text(left + 1.4 + wide * column + 0.06, top, _short(self.table.columns[index]), colour=_SOFT)
            for name, cells in self.table.rows:
                top += 0.24
                sheet.text(left, top + 0.04, _short(name, 20))
                for column, index in enumerate(part):
                    text, share = cells[index]
                    x = left + 1.4 + wide * column
                    sheet.box(x, top, wide - 0.04, 0.21, tuple(1 - 0.45 * share * (1 - c) for c in (0.15, 0.39, 0.92)))
                    sheet.text(x + 0.06, top + 0.04, _short(text))
            top += 0.34


def _cards(explanation: Explanation) -> Iterator[_Card]:
    if explanation.whole is not None:
        yield _Pictures("Image", "Bright is what the model sees.", [("", explanation.whole)])
    yield _Pictures(
        "Picture", "As the model sees it. Maps go from 0 (dark) to their peak.", [("", explanation.picture)]
    )
    for section in explanation.sections:
        yield _card_of(section, explanation.picture)


def _card_of(section: Section, picture: Image.Image) -> _Card:
    match section:
        case Maps():
            tiles = [(tile.label, overlay(picture, tile.values)) for tile in section.tiles]
            return _Pictures(section.title, section.note, tiles)
        case Bars():
            return _Bars(section)
        case Strips():
            return _Strips(section)
        case Table():
            return _Table(section)


def _in_rows(cards: Sequence[_Card]) -> Iterator[list[_Card]]:
    """Cards from left to right, as many as fit."""
    row: list[_Card] = []
    for card in cards:
        if row and sum(other.columns for other in row) + card.columns > COLUMNS:
            yield row
            row = []
        row.append(card)
    if row:
        yield row


def _height(row: Sequence[_Card]) -> float:
    return max(card.head for card in row) + max(card.body for card in row) + 0.25


def _short(text: str, most: int = 15) -> str:
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"
