"""The rule of the VQA challenge and ANLS, against examples worked out by hand."""

from __future__ import annotations

import random
from itertools import product

import pytest

from impresa.evaluation.several_answers import anls, edit_distance, vqa_accuracy, vqa_normalized
from impresa.evaluation.text_scores import metrics_for


def people(**said: int) -> list[str]:
    return [text for text, number in said.items() for _ in range(number)]


@pytest.mark.parametrize(
    ("same", "expected"),
    # Of the ten nines, `same` leave out one who said the same: (same * (same - 1) / 3 + (10 - same) * same / 3) / 10.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_accuracy_by_the_number_of_people_who_said_the_same(same: int, expected: float) -> None:
    assert vqa_accuracy("red", people(red=same, blue=10 - same)) == pytest.approx(expected)


def test_accuracy_is_the_mean_over_those_who_are_left_out() -> None:
    draw = random.Random(0)
    for _ in range(50):
        said = draw.choices("bcd", weights=[5, 2, 1], k=10)
        for answer in "bcde":
            nines = [said[:out] + said[out + 1 :] for out in range(10)]
            by_hand = sum(min(nine.count(answer) / 3, 1) for nine in nines) / 10
            assert vqa_accuracy(answer, said) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes.", "yes"),
        ("A dog", "dog"),
        ("the  two\tdogs", "2 dogs"),
        ("none", "0"),
        ("Ten", "10"),
        ("eleven", "eleven"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("its", "its"),
        ("3.5", "3.5"),
        ("5 p.m.", "5 pm"),
        ("1,000", "1000"),
        ("red/white", "red white"),  # within a word a sign is a space
        ("red / white", "red white"),  # beside one it goes
        ("t-shirt", "t shirt"),
        ("left, right", "left right"),
        ("what?", "what"),  # a space takes its place, and goes at the end
        ('"stop"', "stop"),
        ("man's", "man's"),
        ("a", ""),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert vqa_normalized(text) == expected


def test_both_sides_are_normalised() -> None:
    assert vqa_accuracy("The Two.", ["2"] * 5 + ["two"] * 5) == 1.0


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("Invoice 42", ["invoice  42"], 1.0),
        ("0.28", ["0.28%", "0.28"], 1.0),  # the nearest
        ("kitten", ["sitting"], 1 - 3 / 7),
        ("ab", ["ac"], 0.5),  # just enough
        ("abc", ["axy"], 0.0),
        ("", ["x"], 0.0),
    ],
)
def test_anls(answer: str, references: list[str], expected: float) -> None:
    assert anls(answer, references) == pytest.approx(expected)


def test_edit_distance_is_symmetric_and_obeys_the_triangle() -> None:
    texts = ["".join(letters) for letters in product("ab", repeat=3)] + ["", "abba"]
    for a, b, c in product(texts, repeat=3):
        assert edit_distance(a, b) == edit_distance(b, a) <= edit_distance(a, c) + edit_distance(c, b)
    assert edit_distance("", "abba") == 4


def test_metrics_by_the_number_of_right_answers() -> None:
    assert list(metrics_for([("a",), ("b",)], are_lists=False)) == ["exact_match", "token_f1"]
    assert list(metrics_for([("a",), ("b", "c")], are_lists=True)) == ["exact_match", "anls", "token_f1"]
    ten = [("a",) * 10] * 2
    assert list(metrics_for(ten, are_lists=True)) == ["exact_match", "vqa_accuracy", "anls", "token_f1"]
