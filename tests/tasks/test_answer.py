"""From tokens to the text of an answer, whole and in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from impresa.data.chat import ChatFormat, TemplateChat
from impresa.tasks.answering.answer import Answer, Reader
from tiny_qwen import chat_tokenizer


@cache
def chat() -> ChatFormat:
    """A token for each byte."""
    return TemplateChat(chat_tokenizer())


def read(text: str, *stops: str, ends: bool = True) -> tuple[list[str], Answer]:
    """The pieces of a text, and the answer; held against the whole."""
    ids = [*chat().tokens(text), *(chat().end_ids[:1] if ends else ())]
    reader, returned = Reader(chat(), stops), []

    def pieces() -> Iterator[str]:
        returned.append((yield from reader.pieces(ids)))

    found = list(pieces())
    (answer,) = returned
    assert "".join(found) == answer == reader.answer(ids)
    assert vars(answer) == vars(reader.answer(ids))
    assert all(found)
    return found, answer


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (("circle",), "a red cirque, a circle and more", "a red cirque, a"),
        (("\n",), "red\nblue", "red"),
        (("\n",), "\n\nred\nblue", "red"),  # spaces before an answer are none of it
        ((".", " and"), "red and blue. more", "red"),
        ((" b",), "a red block", "a red"),
        (("é",), "caf é", "caf"),
        (("aab",), "aaab", "a"),
        (("red",), "red", ""),
        (("never",), "red, nevertheless", "red,"),
    ],
)
def test_an_answer_is_cut_before_the_first_text_that_stops_it(stops: tuple[str, ...], text: str, expected: str) -> None:
    for ends in (True, False):
        answer = read(text, *stops, ends=ends)[1]
        assert answer == expected
        assert answer.finish_reason == "stop"


def test_pieces_come_as_soon_as_they_are_certain() -> None:
    assert read("red  é")[0] == ["r", "e", "d", "  é"]
    assert read("a circus", "circle")[0] == ["a", " circu", "s"]
    assert read("a circ", "circle")[0] == ["a", " circ"]


def test_an_answer_that_ends_nowhere_was_cut() -> None:
    assert read("red", "blue", ends=False)[1].finish_reason == "length"
    assert read("red", "blue")[1].finish_reason == "stop"
    assert read("")[1] == ""
