from __future__ import annotations

import json

import pytest

from impresa.foreign_text import json_text, markdown, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a red circle, 100%", "a red circle, 100%"),
        ("été 猫 עברית 👩‍🚀", "été 猫 עברית 👩‍🚀"),
        ("\x1b]0;title\x07", r"\u001b]0;title\u0007"),
        ("\x9b31m", r"\u009b31m"),
        ("cat\u202egnp.exe", r"cat\u202egnp.exe"),
        ("\u2066a\u2069", r"\u2066a\u2069"),
        ("one\ntwo\r", r"one\u000atwo\u000d"),
        ("one\u2028two\u0085", r"one\u2028two\u0085"),
        ("\udc80", r"\udc80"),
        ("\U000e0041", r"\udb40\udc41"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
    ],
)
def test_nothing_in_a_text_steers_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_text_of_several_lines_keeps_them() -> None:
    assert printable("one\n\ttwo\r\x1b", lines=True) == "one\n\ttwo" + r"\u000d\u001b"


def test_json_is_safe_to_show_and_has_the_same_values() -> None:
    values = {"\u202eid": ["\x1b[2J", "\x9b", "猫\n", "\U000e0041"]}
    text = json_text(values)
    assert json.loads(text) == values
    assert "猫" in text
    assert printable(text, lines=True) == text


@pytest.mark.parametrize(
    ("words", "written"),
    [
        ("shapes_vqa_trm, 96.5% (a-b)", "shapes_vqa_trm, 96.5% (a-b)"),
        ("[click](https://example.org)", r"\[click\](https\://example.org)"),
        ("![x](y)", r"!\[x\](y)"),
        ("<script>", r"\<script\>"),
        ("a | b\n\n# c", r"a \| b # c"),
        ("# title", r"\# title"),
        ("- item", r"\- item"),
        ("1. item", r"1\. item"),
        ("2024) item 3.", r"2024\) item 3."),
        ("see http://a.b, WWW.a.b and awww.", r"see http\://a.b, WWW\.a.b and awww."),
        ("_a_ __b__ *c* `d`", r"\_a\_ \_\_b\_\_ \*c\* \`d\`"),
        ("&lt;b&gt;", r"\&lt;b\&gt;"),
    ],
)
def test_no_words_are_markup(words: str, written: str) -> None:
    assert markdown(words) == written
