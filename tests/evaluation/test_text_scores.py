"""Scores of generated texts against values worked out by hand."""

from __future__ import annotations

import random

import pytest

from impresa.evaluation.text_scores import answer_statistics, bleu_statistic, exact_match, rouge_l, score, token_f1


def bleu(answers: list[str], expected: list[str]) -> float:
    return bleu_statistic(answers, [[text] for text in expected], range(len(answers))).value


def test_exact_match_compares_what_is_normalised() -> None:
    assert exact_match("The red circle!", "red circle")
    assert not exact_match("circle red", "red circle")
    assert not exact_match("", "red")


@pytest.mark.parametrize(
    ("answer", "expected", "f1"),
    [
        ("red circle", "a red circle", 1.0),
        ("red", "red circle", 2 / 3),  # precision 1, recall 1/2
        ("red red", "red circle", 1 / 2),  # each word counts as often as it is in both
        ("blue", "red", 0.0),
        ("", "red", 0.0),
        ("the", "a", 0.0),
        ("", " ", 1.0),  # nothing is left of either
    ],
)
def test_f1_of_words(answer: str, expected: str, f1: float) -> None:
    assert token_f1(answer, expected) == pytest.approx(f1)
    assert token_f1(expected, answer) == pytest.approx(f1)


def test_scores_are_means() -> None:
    found = score([("red", ["red"]), ("red", ["red circle"]), ("blue", ["green"])])
    assert found.num_questions == 3
    assert found.exact_match == pytest.approx(1 / 3)
    assert found.token_f1 == pytest.approx((1 + 2 / 3) / 3)


def test_bleu() -> None:
    said = ["a red circle is left of it"]
    assert bleu(said, ["A red circle is left of it"]) == pytest.approx(1.0)
    assert bleu(["a red circle is left of it"], ["there is no such thing"]) == 0
    # Of four words there are none.
    assert list(answer_statistics(["green", "red"], [["red"], ["a red circle"]], [0, 1])) == ["rouge_l"]
    # 6 of 7 words, 4 of 6 pairs, 2 of 5 triples and 1 of 4 quadruples are right, and the lengths are equal.
    expected = (6 / 7 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25
    assert bleu(["a red square is left of it"], said) == pytest.approx(expected)


def test_bleu_is_that_of_torchmetrics_for_the_whole_corpus() -> None:
    from torchmetrics.functional.text import bleu_score

    draw = random.Random(0)
    expected = [" ".join(draw.choices("abcde", k=draw.randint(1, 12))) for _ in range(60)]
    answers = [" ".join(word if draw.random() < 0.8 else "x" for word in text.split()) for text in expected]
    answers[3], answers[4] = "", expected[4].upper()
    whole = float(bleu_score([text.lower() for text in answers], [[text] for text in expected]))
    assert bleu(answers, expected) == pytest.approx(whole, abs=1e-6)
    without_last = float(bleu_score([text.lower() for text in answers[:-1]], [[text] for text in expected[:-1]]))
    left_out = bleu_statistic(answers, [[text] for text in expected], range(60)).leave_one_out()
    assert left_out[-1] == pytest.approx(without_last, abs=1e-6)


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    # "red circle" of three words here and two there: precision 2/3, recall 1.
    assert rouge_l("red big circle", "red circle") == pytest.approx(4 / 5)
    mean = answer_statistics(["red circle", "x"], [["red circle"], ["y"]], [0, 1])["rouge_l"]
    assert mean.value == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("answer", "expected"), [("大きい 赤い 円", "赤い 円"), ("большой красный круг", "красный круг")]
)
def test_rouge_l_reads_every_script(answer: str, expected: str) -> None:
    assert rouge_l(answer, expected) == pytest.approx(4 / 5)
