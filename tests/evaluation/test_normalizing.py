"""Which answers count as the same, each pair with its reason."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from impresa.evaluation.normalizing import normalized
from impresa.evaluation.text_scores import exact_match, token_f1

SAME = {
    # composition, width and marks that nobody sees
    ("caf\u00e9", "cafe\u0301"): "an accent is the same composed and on its own",
    ("\uff21\uff13", "a3"): "full width is the same character, only wider",
    ("\uff76\uff9e", "\u30ac"): "so is half width, the mark of the voice after it",
    ("re\u200bd", "red"): "a zero-width space is not seen",
    ("\ufeffred", "red"): "nor is a byte order mark",
    ("ye\u00ads", "yes"): "nor is a soft hyphen that does not break the line",
    ("\u263a\ufe0f", "\u263a"): "a variation selector chooses the drawing, not the character",
    ("\u200b", ""): "nothing is seen",
    ("-\u200b5", "-5"): "a sign stands before its number, whatever nobody sees between them",
    ("1\u2060000", "1000"): "a word joiner between digits is not seen",
    # punctuation and articles
    ("The red circle.", "red circle"): "articles and full stops say nothing, as in SQuAD",
    ("\u662f\u7684\u3002", "\u662f\u7684"): "nor does the full stop of Chinese",
    ("it's", "it\u2019s"): "apostrophes are one",
    ("it's", "it\u02bcs"): "even one that Unicode calls a letter",
    ("covid-19", "covid\u201119"): "a hyphen in a word is punctuation, as in SQuAD",
    ("50%", "50"): "Unicode calls the sign punctuation, as SQuAD's does",
    ("- 5", "5"): "a dash that stands alone opens an item of a list",
    # signs and joined numbers
    ("-5", "\u22125"): "a minus is a hyphen before a number",
    ("-5", "\uff0d5"): "also in full width",
    ("-5", "\ufe635"): "also in small",
    ("3-5", "3\u20135"): "a range is written with any dash",
    ("3-5", "3\u20145"): "even a long one",
    ("3-5", "3\u301c5"): "or the wave of Japanese",
    ("10:30", "10\uff1a30"): "a colon of full width",
    ("1/2", "1\u20442"): "the slash of fractions is a slash",
    ("5'10", "5\u203210"): "feet are written with an apostrophe",
    ("+5.", "5"): "a plus says nothing",
    ("\uff0b5", "5"): "nor does a wide one",
    # digits
    ("\u0663", "3"): "Arabic-Indic",
    ("\u06f1\u06f2", "12"): "Persian",
    ("\u0967\u0968", "12"): "Devanagari",
    ("\U0001d7d1", "3"): "mathematical",
    ("-\u0665", "-5"): "with a sign",
    ("\u0663\u066b\u0665", "3.5"): "with the decimal point of Arabic",
    ("\u0661\u066c\u0660\u0660\u0660", "1000"): "with the thousands separator of Arabic",
    # thousands
    ("1,000", "1000"): "a complete group",
    ("12,345,678.9", "12345678.9"): "several, and decimals",
    ("-1,000", "-1000"): "with a sign",
    ("1\uff0c000", "1000"): "a wide comma",
    ("1'000", "1000"): "as in Switzerland",
    ("1\u2019000", "1000"): "with a curly one",
    ("1\u00a0000", "1000"): "a no-break space, as in France",
    ("1\u202f234\u202f567", "1234567"): "a narrow one, as the SI wants it",
    ("12,34,567", "1234567"): "as in India",
    ("1,000-2,000", "1000-2000"): "in a range",
    ("$1,000", "$1000"): "after a symbol",
}
DIFFERENT = {
    ("", "A"): "the choice A is an answer",
    ("the", "A"): "so is each article alone",
    ("+", "-"): "signs alone",
    ("A+", "+"): "a grade is no article and its sign",
    ("c+", "c-"): "a plus carries meaning",
    ("$5", "5"): "so does a currency",
    ("5", "-5"): "the sign",
    ("5", "\u22125"): "with a minus of its own",
    ("15", "1.5"): "the point",
    ("15", "1\u066b5"): "that of Arabic",
    ("35", "3-5"): "the range",
    ("35", "3\u20135"): "with any dash",
    ("35", "\u0663\u2013\u0665"): "in any script",
    ("105", "10\u207b\u2075"): "an exponent",
    ("52", "5\u00b2"): "a square",
    ("510", "5'10"): "feet and inches",
    ("35", "3*5"): "a product",
    ("35", "3_5"): "an underscore",
    ("35", "3...5"): "dots",
    ("35", "3\u00b75"): "a middle dot",
    ("35", "3 5"): "two numbers",
    ("12", "1,2"): "one comma two: the script of the VQA challenge would make twelve of it",
    ("15", "1,5"): "a decimal comma",
    ("10000", "1,0000"): "no complete group",
    ("1234567", "1234,567"): "a group too long before it",
    ("0500", "0,500"): "a half, in half of the world",
    ("100000", "1,000,00"): "no group of thousands at the end",
    ("1000", "1.000"): "one, with three decimals",
    ("1000", "1 000"): "two numbers, if the space may break",
    ("1000", "1_000"): "a name",
    (
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e007f",
        "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e007f",
    ): "flags",
}


@pytest.mark.parametrize(("answer", "expected"), SAME)
def test_what_means_the_same_is_a_match(answer: str, expected: str) -> None:
    assert exact_match(answer, expected)
    assert token_f1(answer, expected) == 1


@pytest.mark.parametrize(("answer", "expected"), DIFFERENT)
def test_what_differs_is_no_match(answer: str, expected: str) -> None:
    assert not exact_match(answer, expected)
    assert token_f1(answer, expected) < 1


def test_every_dash_of_unicode_is_a_hyphen_and_nothing_visible_glues_digits() -> None:
    characters = [chr(code) for code in range(32, sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    dashes = [character for character in characters if unicodedata.category(character) == "Pd"]
    assert len(dashes) > 20
    assert {normalized(f"3{dash}5") for dash in dashes} == {"3-5"}
    assert {normalized(f"{dash}5") for dash in dashes} == {"-5"}
    visible = [c for c in characters if unicodedata.category(c)[0] in "LNPSZ" and c not in "\u115f\u1160\u3164\uffa0"]
    assert [c for c in visible if normalized(f"3{c}5") == "35"] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  A Red   circle. ", "red circle"),
        ("the theatre, an ant", "theatre ant"),
        ("don't", "dont"),
        ("A+", "a+"),
        ("The", "the"),  # nothing else would remain
        ("ÉTÉ à 3", "été à 3"),
        ("A.", "a"),
        ("1. red; 2. blue", "1 red 2 blue"),
        ("(-1.5), .5 +7 and 12,345.6", "-1.5 .5 7 and 12345.6"),
        ("3-5 at 10:30 on 1/2, covid-19", "3-5 at 10:30 on 1/2 covid19"),
        ("¿Qué? «sí»", "qué sí"),
        ("`red`", "red"),
    ],
)
def test_normalised(text: str, expected: str) -> None:
    assert normalized(text) == expected
