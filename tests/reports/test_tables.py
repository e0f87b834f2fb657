"""Terminal, page and card print the same tables: same titles, columns, rows and numbers."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import reduce
from html.parser import HTMLParser
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from impresa.errors import CheckpointError
from impresa.evaluation.bootstrap import Interval
from impresa.evaluation.figures import figures
from impresa.evaluation.results import (
    RETRIEVAL_COLUMNS,
    AnswerMetrics,
    AnswerScores,
    BadSampleNote,
    Column,
    DirectionMetrics,
    EmbeddingSpace,
    Evaluation,
    LinearProbe,
    ModalitySpace,
    RetrievalMetrics,
    ZeroShotMetrics,
    read_evaluation,
    save_evaluation,
)
from impresa.foreign_text import markdown
from impresa.reports.card import model_card
from impresa.reports.html import render_report
from impresa.reports.tables import interval_note, make_tables, warnings
from impresa.reports.terminal import print_results
from impresa.run_dir.layout import EVALUATION, GALLERY
from tiny_run import tiny_experiment

EVIL = "<script>alert('x')</script>"
ENVIRONMENT = {
    **{"started": "now", "command": ["impresa"], "seed": 0, "impresa": "1", "python": "3", "git": None},
    "packages": {"torch": "2"},
}


def direction(share: float) -> DirectionMetrics:
    recall_at = {1: share, 5: share + 0.1, 10: share + 0.2}
    return DirectionMetrics(recall_at, 2 + share, 1.5, 1234, 1234, share + 0.05, share + 0.02, share + 0.1)


def retrieval(share: float) -> RetrievalMetrics:
    return RetrievalMetrics(direction(share), direction(share + 0.01))


def scores(share: float) -> AnswerScores:
    return AnswerScores(1200, share, share + 0.05)


EMBEDDING = Evaluation(
    *("squares", 12, 24, 20),
    retrieval=retrieval(0.5),
    by_dimension={16: retrieval(0.4), 8: retrieval(0.3)},
    baselines={"colour histogram": retrieval(0.2), "chance": retrieval(0.1)},
    num_sounds=7,
    sound={
        "audio_to_text": {"model": direction(0.6), "chance": direction(0.1)},
        "text_to_image+audio": {"model": direction(0.7)},
    },
    zero_shot=ZeroShotMetrics(("a", "b"), ("{}",), 10, 0.9, {"a": 0.9}, ((9, 1), (0, 0)), 0.5, 0.6),
    linear_probe=LinearProbe(0.85, 0.55, 200, 10, 2, 10.0),
    space=EmbeddingSpace({"image": ModalitySpace(12, -1.5, 6.54), "text": ModalitySpace(20, None, 7.0)}, 0.5, 0.25),
    intervals={
        "model": {
            "image_to_text_recall_at_1": Interval(0.4712, 0.53),
            "image_to_text_recall_at_5": Interval(0.5, 0.6),
            "zero_shot_accuracy": Interval(0.8, 1.0),
        },
        "colour histogram": {"image_to_text_recall_at_1": Interval(0.1, 0.3)},
    },
)
KINDS = {
    "count": {"model": scores(0.5), "shuffled": AnswerScores(0, 0.0, 0.0), "blind": scores(0.2)},
    "colour": {"model": scores(0.6), "shuffled": scores(0.3), "blind": scores(0.1)},
}
ANSWERING = Evaluation(
    *("asked", 100, 1200, 50),
    answers=AnswerMetrics(scores(0.8), scores(0.4), scores(0.3), 0.1, 0.2, 0.25, 1.28, kinds=KINDS),
)


class Tables(HTMLParser):
    """The cells of a page's tables, row by row; a heading over a group of rows is a row of one cell."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.in_cell = False
        self.feed(page)

    def handle_endtag(self, tag: str) -> None:
        self.in_cell &= tag not in ("th", "td")

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.in_cell = True
            self.tables[-1][-1].append("")

    def handle_data(self, text: str) -> None:
        if self.in_cell:
            self.tables[-1][-1][-1] += text


def on_page(evaluation: Evaluation, run_dir: Path) -> Iterator[list[str]]:
    save_evaluation(evaluation, run_dir)
    page = render_report(run_dir)
    titles = [title for title in re.findall(r"<h2>(.*?)</h2>", page) if title in titles_of(evaluation)]
    for title, rows in zip(
        titles, Tables(page.partition("<h2>Confusion")[0].partition("<h2>Bad")[0]).tables, strict=True
    ):
        yield [title, *rows[0][1:]]
        yield from rows[1:]


def on_card(evaluation: Evaluation, _: Path) -> Iterator[list[str]]:
    text = model_card(tiny_experiment(), evaluation, ENVIRONMENT, Path("run"), 1)
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            yield [cells[0].strip("*")] if cells[0].startswith("**") else cells


def on_terminal(evaluation: Evaluation, _: Path) -> Iterator[list[str]]:
    stream = io.StringIO()
    print_results(evaluation, Console(file=stream, width=100))
    names = names_of(evaluation)
    for line in stream.getvalue().splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        if cells[0] in names:
            yield cells


def titles_of(evaluation: Evaluation) -> set[str]:
    return {table.title for table in make_tables(evaluation)}


def names_of(evaluation: Evaluation) -> set[str]:
    groups = [item for table in make_tables(evaluation) for item in table.groups.items()]
    return titles_of(evaluation) | {name for heading, rows in groups for name in (heading, *(row.name for row in rows))}


def expected(evaluation: Evaluation) -> Iterator[list[str]]:
    for table in make_tables(evaluation):
        yield [table.title, *table.columns]
        for heading, rows in table.groups.items():
            if heading:
                yield [heading]
            yield from ([row.name, *row.texts] for row in rows)


@pytest.mark.parametrize("printed", [on_page, on_card, on_terminal])
@pytest.mark.parametrize("evaluation", [EMBEDDING, ANSWERING])
def test_all_print_the_same_tables(
    printed: Callable[[Evaluation, Path], Iterator[list[str]]], evaluation: Evaluation, tmp_path: Path
) -> None:
    assert list(printed(evaluation, tmp_path)) == list(expected(evaluation))


def test_the_tables_of_a_model_that_embeds() -> None:
    retrieval_table, ranking, sound, _, classification, probe, space = make_tables(EMBEDDING)
    assert retrieval_table.columns == ("R@1", "R@5", "R@10")
    assert ranking.columns == ("MRR", "mAP", "NDCG", "median rank", "mean rank")
    assert list(retrieval_table.groups) == ["image → text", "text → image"]
    names = ["model", "first 16 dimensions", "first 8 dimensions", "colour histogram", "chance"]
    assert [row.name for row in retrieval_table.groups["text → image"]] == names
    assert retrieval_table.groups["image → text"][0].texts == ("50.0% (47.1 to 53.0)", "60.0%", "70.0%")
    assert retrieval_table.groups["image → text"][3].texts == ("20.0%", "30.0%", "40.0%")  # no headline row
    assert ranking.groups["image → text"][0].cells == ("0.550", "0.520", "0.600", "1.5", "2.5")
    assert list(sound.groups) == ["audio → text", "text → image+audio"]
    assert [row.texts for row in classification.groups[""]] == [("90.0% (80.0 to 100.0)",), ("60.0%",), ("50.0%",)]
    assert [row.cells for row in probe.groups[""]] == [("85.0%",), ("55.0%",)]
    assert "200 training images. Its C, 10, is the best of seven" in probe.note
    assert space.columns == ("embeddings", "effective rank", "uniformity")
    assert [row.cells for row in space.groups[""]] == [("12", "6.5", "-1.50"), ("20", "7.0", "-")]
    assert space.figures == "alignment 0.500, modality gap 0.250"


def test_an_evaluation_of_an_older_version_has_the_tables_that_it_can() -> None:
    old = DirectionMetrics({1: 0.5, 5: 0.6, 10: 0.7}, 2.5, 1.5, 10, 10)
    tables = make_tables(Evaluation("old", 10, 10, 10, retrieval=RetrievalMetrics(old, old)))
    assert [table.columns for table in tables] == [("R@1", "R@5", "R@10"), ("median rank", "mean rank")]
    assert interval_note(tables) == ""


def test_brackets_are_explained_wherever_they_are_printed(tmp_path: Path) -> None:
    stream = io.StringIO()
    print_results(EMBEDDING, Console(file=stream, width=80))
    save_evaluation(EMBEDDING, tmp_path)
    card = model_card(tiny_experiment(), EMBEDDING, ENVIRONMENT, Path("run"), 1)
    for text in (stream.getvalue(), render_report(tmp_path), card):
        assert "In brackets: 95% intervals" in text
        assert "50.0% (47.1 to 53.0)" in re.sub("<[^>]*>", "", text)


def test_the_tables_of_a_model_that_answers() -> None:
    answers, by_type = make_tables(ANSWERING)
    assert answers.groups[""][0].cells == ("1,200", "80.0%", "85.0%")
    assert answers.figures == "loss 0.250, perplexity 1.28, BLEU 0.100, ROUGE-L 0.200"
    assert by_type.columns == ("questions", "model", "other images", "most frequent answer")
    assert list(by_type.groups) == ["exact match", "token F1"]
    assert by_type.groups["exact match"][0].cells == ("1,200", "50.0%", "-", "20.0%")
    assert by_type.groups["token F1"][1].cells == ("1,200", "65.0%", "35.0%", "15.0%")


@pytest.mark.parametrize("printed", [on_page, on_card, on_terminal])
def test_a_column_that_is_declared_is_printed_where_it_was_measured(
    printed: Callable[[Evaluation, Path], Iterator[list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def candidates(found: DirectionMetrics) -> int | None:
        return None if found.recall_at[1] < 0.15 else found.num_candidates

    columns = (*RETRIEVAL_COLUMNS, Column("candidates", ",", candidates), Column("lost", ".1f", lambda _: None))
    monkeypatch.setattr("impresa.reports.tables.RETRIEVAL_COLUMNS", columns)
    rows = list(printed(EMBEDDING, tmp_path))
    assert rows[0] == ["Retrieval", "R@1", "R@5", "R@10", "candidates"]
    assert rows[2] == ["model", "50.0% (47.1 to 53.0)", "60.0%", "70.0%", "1,234"]
    assert rows[6] == ["chance", "10.0%", "20.0%", "30.0%", "-"]


def test_the_main_columns_stand_on_top_of_the_page(tmp_path: Path) -> None:
    def on_top(evaluation: Evaluation) -> list[str]:
        save_evaluation(evaluation, tmp_path)
        cards = r'<p class="eyebrow">(.*?)</p><div class="headline number">(.*?)</div>'
        return [f"{title} {share}" for title, share in re.findall(cards, render_report(tmp_path))]

    shares = ["image → text, R@1 50.0%", "text → image, R@1 51.0%", "zero-shot accuracy 90.0%"]
    shares.append("linear probe accuracy 85.0%")
    assert on_top(EMBEDDING) == shares
    assert on_top(ANSWERING) == ["exact match 80.0%", "token F1 85.0%"]
    only_sound = replace(EMBEDDING, retrieval=None, zero_shot=None, linear_probe=None)
    assert on_top(only_sound) == ["audio → text, R@1 60.0%", "text → image+audio, R@1 70.0%"]


def test_names_cannot_break_out_of_their_cells(tmp_path: Path) -> None:
    name = f"{EVIL} | a\nb"
    assert ANSWERING.answers is not None
    answers = replace(ANSWERING.answers, kinds={name: KINDS["colour"]})
    evil = replace(ANSWERING, data=EVIL, answers=answers)
    card = model_card(tiny_experiment(), evil, ENVIRONMENT, Path("run"), 1)
    assert f"| {markdown(name)} | 1,200 | 60.0% |" in card
    assert "<script" not in card.replace(r"\<", "")
    run_dir = tmp_path / "<img src=x onerror=alert(1)>"
    run_dir.mkdir()
    assert "<img" not in render_report(run_dir)  # named as title, and in the command that evaluates it
    save_evaluation(evil, run_dir)
    page = render_report(run_dir)
    assert "<img" not in page
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 3  # the data, and the type of question under both scores


def test_reports_import_neither_torch_nor_a_plotting_library() -> None:
    """A report is made from files; charts import matplotlib once they are drawn."""
    heavy = ("torch", "matplotlib", "torchmetrics", "transformers")
    modules = ("html", "card", "terminal", "charts")
    code = f"import sys, {', '.join(f'impresa.reports.{name}' for name in modules)}\n"
    code += f"print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_metrics_import_no_more_than_torch() -> None:
    heavy = ("matplotlib", "torchmetrics", "transformers", "PIL", "rich")
    modules = ("retrieval", "zero_shot", "text_scores", "intervals", "space")
    code = f"import sys, {', '.join(f'impresa.evaluation.{name}' for name in modules)}\n"
    code += f"print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


QUESTION = {**dict.fromkeys(("question", "expected", "answer"), "a"), "right": True}
FOREIGN: dict[str, dict[str, Any]] = {
    "picture": {"image_queries": [{"captions": ["a"], "image": "https://example.org/x.png", "answers": []}]},
    "svg": {"questions": [{"image": "data:image/svg+xml;base64,AAAA", **QUESTION}]},
    "empty": {"text_queries": [{"captions": [], "image": None, "answers": []}]},
    "ragged": {"similarity": [[0.1, 0.2], [0.3]], "similarity_captions": ["a", "b"]},
    "large": {"similarity": [[0.0] * 300] * 300, "similarity_captions": ["a"] * 300},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_gallery_of_another_program_is_refused(name: str, tmp_path: Path) -> None:
    save_evaluation(ANSWERING, tmp_path)
    (tmp_path / GALLERY).write_text(json.dumps(FOREIGN[name]))
    with pytest.raises(CheckpointError, match=r"gallery.*run `impresa eval` on this run again"):
        render_report(tmp_path)


def odd_evaluations() -> Iterator[tuple[str, dict[str, Any]]]:
    """Stored evaluations, each with one number or key that no evaluation has."""
    for whole in (EMBEDDING, ANSWERING):
        tree = whole.to_dict()
        for path in leaves(tree):
            for odd in (-1, 2, 10**400, float("nan"), "deleted"):
                copy = json.loads(json.dumps(tree))
                *parents, last = path
                parent = reduce(getitem, parents, copy)
                if odd == "deleted":
                    del parent[last]
                else:
                    parent[last] = odd
                yield f"{path} {odd!r:.20}", copy


def leaves(tree: Any) -> Iterator[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:1]) if isinstance(tree, list) else ()
    for key, value in items:
        yield (key,)
        yield from ((key, *rest) for rest in leaves(value))


def test_odd_numbers_are_shown_or_refused_and_never_raised(tmp_path: Path) -> None:
    raised = {}
    for name, tree in odd_evaluations():
        (tmp_path / EVALUATION).write_text(json.dumps(tree))
        try:
            found = read_evaluation(tmp_path)
            assert found is not None
            for shown in (make_tables, warnings, figures):
                shown(found)
        except CheckpointError:
            continue
        except Exception as error:
            raised[name] = error
    assert not raised


def test_answers_to_no_questions_are_shown(tmp_path: Path) -> None:
    assert ANSWERING.answers is not None
    none = AnswerScores(0, 0.0, 0.0)
    save_evaluation(replace(ANSWERING, answers=replace(ANSWERING.answers, model=none, shuffled=none)), tmp_path)
    assert "exact match" in render_report(tmp_path)


def test_words_of_others_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert ANSWERING.answers is not None
    evil = "\x1b[2J\u202e\nforged row"
    answers = replace(ANSWERING.answers, kinds={evil: KINDS["colour"]})
    bad = (BadSampleNote(evil, evil),)
    print_results(replace(ANSWERING, data=evil, answers=answers, bad_samples=bad), Console(width=200))
    shown = capsys.readouterr().out
    assert r"\u001b[2J\u202e\u000aforged row" in shown
    assert not {"\x1b", "\u202e"} & set(shown)
    assert not any(line.startswith("forged") for line in shown.splitlines())


def test_a_gallery_without_pictures_is_shown(tmp_path: Path) -> None:
    save_evaluation(ANSWERING, tmp_path)
    query = {"captions": ["a"], "image": None, "answers": [{"score": 0.5, "right": True, "caption": "a"}]}
    (tmp_path / GALLERY).write_text(json.dumps({"image_queries": [query], "text_queries": [query]}))
    assert "What a text finds" in render_report(tmp_path)
