"""Cells of tables: lists that were printed, text in which nothing is seen, bytes, and labels that are numbers."""

from __future__ import annotations

import time
from contextlib import suppress
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from impresa.data.text import is_blank, read_captions, read_label

TWO = ["a dog", "it's a 'cat'"]
NAN = float("nan")


@pytest.mark.parametrize(
    "printed",
    [
        str(TWO),
        str(tuple(TWO)),
        str(np.array(TWO)),  # no commas: Python would join the two
        repr(np.array(TWO, dtype=object)),
        f" {TWO}\n",
        '["a dog", "it\'s a \'cat\'"]',
        "[u'a dog', u\"it's a 'cat'\"]",
        str([text.encode() for text in TWO]),
        str([TWO[0], None, NAN, "", TWO[1]]),
        [str(TWO)],
        [text.encode() for text in TWO],
    ],
)
def test_a_printed_list_is_a_list(printed: Any) -> None:
    assert read_captions(printed) == tuple(TWO)


def test_a_printed_set_and_printed_bytes_are_read() -> None:
    assert sorted(read_captions("{'a', 'b'}")) == ["a", "b"]
    assert read_captions("b'caf\\xc3\\xa9'") == ("café",)
    assert read_captions("café".encode()) == ("café",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("['a dog', 'a c", "begins as a list and is none"),
        ("['a' + 'b']", "begins as a list and is none"),
        ('[["a" b]]', "begins as a list and is none"),
        ("['a', 3]", "is no text but"),
        ("[1, 2]", "is no text but"),
        (str({"raw": "a dog"}), "is no text but"),
        ('[{"raw": "a dog"}]', "is no text but"),
        ([' {"en": "a dog"}', "a dog"], "is no text but"),
        ("[" * 50_000, "nested too deeply"),
        (b"caf\xe9", "not UTF-8 text; as Latin-1 it reads 'café'"),
        ("['caf\udce9']", "not UTF-8 text; as Latin-1"),
        ("half \ud800", "not UTF-8 text"),
    ],
)
def test_what_only_looks_like_a_caption_is_named(text: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_captions(text)


@pytest.mark.parametrize(
    "text", ["[music] a dog", "[A dog] runs", "('tis the season)", '("hi", he said', "(a dog)", "{x}", "{'a'} b: c"]
)
def test_brackets_are_text(text: str) -> None:
    assert read_captions(text) == (text,)


@pytest.mark.parametrize(
    "value",
    [
        *("", " \t\n", "\u200b\ufeff", "\u2060\u00ad", "\u3164", "\u2800\x00", "\ufe0f", "nan", "NaN", "[]"),
        *(b"", None, NAN, [], [None, "\u200b"]),
    ],
)
def test_what_shows_nothing_is_no_caption(value: Any) -> None:
    with pytest.raises(ValueError, match="the caption is empty"):
        read_captions(value)
    assert read_captions(value, may_lack=True) == ()


def test_letters_of_any_script_and_symbols_are_seen() -> None:
    assert not any(map(is_blank, ["犬", "🐶", "가", "\u0928\u093f", "!", "\ue000"]))


@pytest.mark.parametrize(
    ("value", "label"),
    [
        *((nothing, None) for nothing in (None, "", " ", NAN, "nan", "<NA>", b"", [], "\u200b", Decimal("NaN"))),
        *((one, "1") for one in (1, 1.0, "1.0", "1", Decimal("1.0"), [1.0], b"1")),
        (0, "0"),
        (0.5, "0.5"),
        (" cat ", "cat"),
        ("v1.0", "v1.0"),
        (["cat", "dog"], "cat, dog"),
    ],
)
def test_labels_are_whole_numbers_names_or_nothing(value: Any, label: str | None) -> None:
    assert read_label(value) == label


def test_hostile_text_takes_no_time() -> None:
    start = time.thread_time()
    for text in ("['" + "\\'" * 500_000, "[" + " " * 1_000_000, "[" + "'a' " * 200_000 + "x", "'" * 500_000):
        with suppress(ValueError):
            read_captions(text)
    assert time.thread_time() - start < 5
