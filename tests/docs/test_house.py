"""docs/images/house.svg is the picture of the source as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_the_picture_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    import draw_house

    assert draw_house.PICTURE.read_text(encoding="utf-8") == draw_house.draw(), "run python docs/draw_house.py"


def test_every_part_has_a_description(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    import draw_house

    parts, notes = draw_house.find_parts()
    assert [part for part in parts if not notes.get(part)] == []
