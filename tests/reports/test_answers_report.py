"""What report, table and model card say of a model that answers questions."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from impresa.config import ExperimentConfig, load_experiment, to_yaml
from impresa.evaluation.gallery import AnsweredQuestion, Gallery
from impresa.evaluation.results import AnswerMetrics, AnswerScores, Evaluation, save_evaluation
from impresa.reports.card import model_card
from impresa.reports.html import write_report
from impresa.reports.terminal import print_results

EVIL = "<script>alert('x')</script>"
SCORES = {
    "model": AnswerScores(200, 0.875, 0.9),
    "shuffled": AnswerScores(200, 0.331, 0.35),
    "blind": AnswerScores(200, 0.412, 0.42),
}
ANSWERS = AnswerMetrics(**SCORES, bleu=0.123, rouge_l=0.456, loss=0.25, perplexity=1.284, kinds={"count": SCORES})
GALLERY = Gallery(
    questions=(
        AnsweredQuestion("data:image/png;base64,AAAA", "how many?", "three", "three", right=True),
        AnsweredQuestion(None, f"what is {EVIL}?", "red", "", right=False),
    )
)
EVALUATION = Evaluation("shapes, test split", 100, 200, 50, answers=ANSWERS, gallery=GALLERY)
BLIND = replace(EVALUATION, answers=replace(ANSWERS, shuffled=SCORES["model"]))
WARNING = "not looking"


def page(tmp_path: Path, evaluation: Evaluation) -> str:
    save_evaluation(evaluation, tmp_path)
    (tmp_path / "config.yaml").write_text(to_yaml(ExperimentConfig(name="asked")))
    return write_report(tmp_path).read_text(encoding="utf-8")


def table(evaluation: Evaluation) -> str:
    console = Console(file=io.StringIO(), width=120)
    print_results(evaluation, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def card(evaluation: Evaluation) -> str:
    environment = {"started": "now", "command": ["impresa"], "seed": 0, "impresa": "1", "python": "3", "git": None}
    config = load_experiment("shapes_vqa_trm", [])
    return model_card(config, evaluation, {**environment, "packages": {"torch": "2"}}, Path("runs/a"), 12345)


def test_the_report_shows_all_figures(tmp_path: Path) -> None:
    text = page(tmp_path, EVALUATION)
    figures = ("87.5%", "90.0%", "33.1%", "41.2%", "1.28", "0.123", "0.456", "100 images, 200 questions")
    assert [part for part in figures if part not in text] == []
    assert [part for part in ("other images", "most frequent answer", "count") if part not in text] == []
    assert WARNING not in text
    assert "What an image finds" not in text


def test_the_report_shows_examples_with_what_would_be_right(tmp_path: Path) -> None:
    text = page(tmp_path, EVALUATION)
    assert text.count("✓") == text.count("✗") == 1
    assert "Right: <bdi>red</bdi>" in text
    assert "(nothing)" in text
    assert "data:image/png;base64,AAAA" in text
    assert EVIL not in text
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize("printed", [table, card])
def test_table_and_card_show_the_figures(printed: Callable[[Evaluation], str]) -> None:
    text = printed(EVALUATION)
    assert [part for part in ("87.5%", "33.1%", "41.2%", "count", "1.28") if part not in text] == []
    assert WARNING not in text


def test_a_model_that_does_not_look_is_named_everywhere(tmp_path: Path) -> None:
    assert all(WARNING in text for text in (page(tmp_path, BLIND), table(BLIND), card(BLIND)))


def test_without_training_data_there_is_no_most_frequent_answer(tmp_path: Path) -> None:
    pairs = {name: scores for name, scores in SCORES.items() if name != "blind"}
    alone = replace(EVALUATION, answers=replace(ANSWERS, blind=None, kinds={"count": pairs}))
    assert '<th scope="row">most frequent answer</th>' not in page(tmp_path, alone)
    assert "41.2%" not in page(tmp_path, alone)
    assert "most frequent answer" not in table(alone)


def test_the_card_says_how_to_ask() -> None:
    text = card(EVALUATION)
    for part in ("visual-question-answering", "Answers questions about images.", "model.ask("):
        assert part in text
    assert "model.caption(" not in text
    captions = replace(EVALUATION, answers=replace(ANSWERS, kinds={"caption": SCORES}))
    assert 'model.caption(["a.jpg", "b.jpg"])' in card(captions)
    assert "encode_image" not in text
    assert "impresa.load('runs/a')" in text


@pytest.mark.parametrize("kind", ["[/x]", "count [easy]", ":cat:"])
def test_a_type_of_question_is_shown_as_it_is(kind: str) -> None:
    assert f"  {kind} " in table(replace(EVALUATION, answers=replace(ANSWERS, kinds={kind: SCORES})))


def test_bleu_is_left_out_where_answers_are_too_short_for_it(tmp_path: Path) -> None:
    short = replace(EVALUATION, answers=replace(ANSWERS, bleu=None))
    assert "perplexity 1.28, BLEU 0.123, ROUGE-L 0.456" in table(EVALUATION)
    assert "perplexity 1.28, ROUGE-L 0.456" in table(short)
    assert "perplexity 1.28, BLEU 0.123, ROUGE-L 0.456" in page(tmp_path, EVALUATION)
    assert "perplexity 1.28, ROUGE-L 0.456" in page(tmp_path, short)


def test_without_other_images_there_is_nothing_said_of_them(tmp_path: Path) -> None:
    none = AnswerScores(0, 0.0, 0.0)
    kinds = {"count": {**SCORES, "shuffled": none}}
    alone = replace(EVALUATION, answers=replace(ANSWERS, shuffled=none, kinds=kinds))
    assert "other images" in table(EVALUATION)
    assert "other images" not in table(alone)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    cells = "<th>other images</th>"
    assert cells in page(tmp_path / "one", EVALUATION)
    assert cells not in page(tmp_path / "two", alone)
    mixed = replace(EVALUATION, answers=replace(ANSWERS, kinds={**kinds, "colour": SCORES}))
    assert "<td>-</td>" in page(tmp_path / "two", mixed)


def test_wrong_answers_stand_beside_those_about_another_image(tmp_path: Path) -> None:
    wrong = AnsweredQuestion(None, "what colour?", "red", "blue", right=False, other="green")
    shown = page(tmp_path, replace(EVALUATION, gallery=replace(GALLERY, wrong=(wrong,))))
    assert "What it answers wrong" in shown
    assert "About another image: <bdi>green</bdi>" in shown
    assert "✓ right" in shown  # in words, not by colour alone
    assert "✗ wrong" in shown
    assert "What it answers wrong" not in page(tmp_path, EVALUATION)


@pytest.mark.parametrize("printed", [table, card])
def test_questions_without_types_have_a_table_by_text(printed: Callable[[Evaluation], str]) -> None:
    long = "what is the colour of the thing " * 9
    text = printed(replace(EVALUATION, answers=replace(ANSWERS, kinds={}, texts={"how many?": SCORES, long: SCORES})))
    assert "By question" in text
    assert "By type" not in text
    assert "how many?" in text
    assert "what is the colour of the thing" in text
    assert long not in text


def test_scores_of_several_right_answers_are_columns_where_measured(tmp_path: Path) -> None:
    several = {name: replace(scores, vqa_accuracy=0.655, anls=0.777) for name, scores in SCORES.items()}
    measured = replace(EVALUATION, answers=replace(ANSWERS, **several, kinds={"count": several}))
    for text in (page(tmp_path, measured), table(measured), card(measured)):
        assert all(part in text for part in ("VQA accuracy", "65.5%", "ANLS", "77.7%"))
    assert all("ANLS" not in text for text in (page(tmp_path, EVALUATION), table(EVALUATION), card(EVALUATION)))
