"""The tables of an evaluation, which terminal, report and model card print alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from textwrap import shorten

from impresa.evaluation.bootstrap import Interval
from impresa.evaluation.figures import FigureKind, figures, kind_of
from impresa.evaluation.results import (
    ANSWER_COLUMNS,
    PAIR_COLUMNS,
    PROBE_COLUMNS,
    RANKING_COLUMNS,
    RETRIEVAL_COLUMNS,
    SCORE_COLUMNS,
    SCORED,
    SPACE_COLUMNS,
    ZERO_SHOT_COLUMNS,
    AnswerScores,
    Column,
    DirectionMetrics,
    EmbeddingSpace,
    Evaluation,
    LinearProbe,
    Scores,
    ZeroShotMetrics,
)
from impresa.reports.verdict import baseline_note, crop_warning, retrieval_verdict

MODEL = "model"
"""Name of the row that a table is about; the other rows are baselines."""
MOST_LETTERS = 60
"""Of a question that names a row."""
NOT_LOOKING = (
    "The model is not looking: asked about other images it answers as well. "
    "What it knows comes from the words of the questions alone."
)
NOT_LISTENING = NOT_LOOKING.replace("looking", "listening").replace("images", "sounds")
_RETRIEVAL_NOTE = (
    "R@k: share of queries with a right answer among the first k. Ties count against the model; captions that read the "
    "same are one text, right for each of its images."
)
_RANKING_NOTE = (
    "MRR: mean of 1 / rank of the best right answer. mAP and NDCG judge the ranks of all right answers; 1 is perfect."
)
_SPACE_NOTE = (
    "Of embeddings scaled to length one. Effective rank: directions that they use, as many as their width at most. "
    "Uniformity: 0 where all are equal, the lower the more evenly they lie. Alignment: mean squared distance of an "
    "image and its caption. Modality gap: distance between the mean image and the mean caption."
)
_INTERVAL_NOTE = (
    "In brackets: 95% intervals over the items of these data (BCa bootstrap); the seed of training is not in them."
)
_SOUND_NOTE = "Each pair is judged on the samples that have both; sounds that are equal are one."
_ANSWERS_NOTE = (
    "Exact match and F1 of words compare lower case without punctuation and articles. With “other images” each "
    "question is asked about another sample of the data; the most frequent answer is that to the same question in "
    "training, or to its type."
)
_REFERENCES_NOTE = " Of several right answers the nearest counts."
_VQA_NOTE = " VQA accuracy: full marks where three of the other people said the same, the rule of the VQA challenge."
_ANLS_NOTE = " ANLS: similarity by edit distance to the nearest right answer, 0 below a half."


_BEFORE_NOTE = (
    "The same items before the first training step and after the last. R@k, MRR and mAP are means of both directions; "
    "differences of percentages are in points."
)
_MAIN_FIGURES = ("recall_at_1", "recall_at_5", "recall_at_10", "mrr", "map", "zero_shot_accuracy")


@dataclass(frozen=True)
class Row:
    """A name and one text for each column."""

    name: str
    cells: tuple[str, ...]
    intervals: tuple[str, ...] = ()
    """For each cell the bounds of its number, or nothing."""

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Each cell with its bounds, or nothing."""
        return tuple(zip_longest(self.cells, self.intervals, fillvalue=""))

    @property
    def texts(self) -> tuple[str, ...]:
        """The cells with the bounds in brackets."""
        return tuple(f"{cell} ({bounds})" if bounds else cell for cell, bounds in self.pairs)


@dataclass(frozen=True)
class Table:
    """Rows of text under headings, ready to be printed."""

    title: str
    columns: tuple[str, ...]
    groups: dict[str, tuple[Row, ...]]
    """Rows by the heading above them; "" for rows without one."""
    headlines: tuple[str, ...] = ()
    """Columns, of percentages, that the report shows on top as well."""
    figures: str = ""
    """Further results, as a line under the table."""
    note: str = ""
    """How to read the table."""
    footnote: str = ""
    """Kinds of its rows, also as a line under the table."""


def summary(evaluation: Evaluation) -> str:
    """The data and their size, on one line."""
    texts = "captions" if evaluation.answers is None else "questions"
    images = f"{evaluation.num_images:,} images, " if evaluation.num_images or not evaluation.num_sounds else ""
    sounds = f", {evaluation.num_sounds:,} sounds" if evaluation.num_sounds else ""
    return (
        f"{evaluation.data}: {images}{evaluation.num_texts:,} {texts} "
        f"({evaluation.num_distinct_texts:,} distinct){sounds}"
    )


def warnings(evaluation: Evaluation) -> list[str]:
    """Sentences that no reader of the results should miss."""
    answers, cut = evaluation.answers, crop_warning(evaluation.share_cut)
    if answers is None:
        return [*retrieval_verdict(evaluation), *cut]
    verdict = NOT_LOOKING if evaluation.num_images else NOT_LISTENING
    return [*([] if answers.looks_at_images else [verdict]), *cut]


def figures_in_words(figures: Mapping[str, float]) -> str:
    """The main ones of figures by name, on one line."""
    shown = ((kind_of(name), figures[name]) for name in _MAIN_FIGURES if name in figures)
    return ", ".join(f"{kind.label} {value:{kind.format}}" for kind, value in shown)


def signed(value: float, kind: FigureKind) -> str:
    """A difference of figures with its sign, in points for shares."""
    text = format(value * kind.scale, "+.1f" if kind.unit else f"+{kind.format}")
    return text.replace("-", "+") if not text.strip("+-0.") else text


def interval_note(tables: Sequence[Table]) -> str:
    """How to read the brackets in the tables; nothing where there are none."""
    rows = (row for table in tables for group in table.groups.values() for row in group)
    return _INTERVAL_NOTE if any(any(row.intervals) for row in rows) else ""


def make_tables(evaluation: Evaluation) -> list[Table]:
    """All tables of an evaluation, most important first."""
    tables = [_before_and_after(evaluation)] if evaluation.before else []
    intervals = evaluation.intervals.get(MODEL, {})
    if answers := evaluation.answers:
        figures = _line_of(ANSWER_COLUMNS, answers)
        groups = {"": answers.rows()}
        tables.append(_table("Answers", SCORE_COLUMNS, groups, intervals, figures=figures, note=_note(answers.model)))
        if answers.kinds:
            tables.append(_by_question("By type of question", answers.kinds))
        if answers.texts:
            tables.append(_by_question("By question", answers.texts))
    if rows := evaluation.retrieval_rows():
        directions = {
            "image_to_text": {name: metrics.image_to_text for name, metrics in rows.items()},
            "text_to_image": {name: metrics.text_to_image for name, metrics in rows.items()},
        }
        recall, ranking = _retrieval("", directions, intervals, _RETRIEVAL_NOTE)
        tables += [replace(recall, footnote=baseline_note(evaluation)), ranking]
    if evaluation.sound:
        note = f"{evaluation.num_sounds:,} samples have a sound. {_SOUND_NOTE}"
        of_sound = _retrieval(" with sound", evaluation.sound, intervals, note)
        tables += [replace(table, headlines=()) for table in of_sound] if rows else of_sound
    if evaluation.zero_shot is not None:
        tables.append(_zero_shot(evaluation.zero_shot, intervals))
    if evaluation.linear_probe is not None:
        tables.append(_linear_probe(evaluation.linear_probe, intervals))
    if evaluation.space is not None and evaluation.space.modalities:
        tables.append(_space(evaluation.space))
    return tables


def _note(scores: AnswerScores) -> str:
    """How to read the scores that were measured."""
    several = scores.vqa_accuracy is not None or scores.anls is not None
    notes = {_REFERENCES_NOTE: several, _VQA_NOTE: scores.vqa_accuracy is not None, _ANLS_NOTE: scores.anls is not None}
    return _ANSWERS_NOTE + "".join(note for note, is_due in notes.items() if is_due)


def _before_and_after(evaluation: Evaluation) -> Table:
    before, after = evaluation.before, figures(evaluation)

    def row(name: str) -> Row:
        kind = kind_of(name)
        cells = (format(figure, kind.format) for figure in (before[name], after[name]))
        return Row(kind.label, (*cells, signed(after[name] - before[name], kind)))

    rows = tuple(row(name) for name in _MAIN_FIGURES if name in before and name in after)
    return Table("Before and after", ("before", "after", "difference"), {"": rows}, note=_BEFORE_NOTE)


def _retrieval(
    of: str, directions: Mapping[str, Mapping[str, DirectionMetrics]], intervals: Mapping[str, Interval], note: str
) -> list[Table]:
    """The table of R@k and that of the ranks."""
    return [
        _table(f"Retrieval{of}", RETRIEVAL_COLUMNS, directions, intervals, note=note),
        _table(f"Ranking{of}", RANKING_COLUMNS, directions, note=_RANKING_NOTE),
    ]


def _line_of(columns: Sequence[Column[Scores]], scores: Scores) -> str:
    """Further numbers as a line."""
    return ", ".join(f"{column.label} {column.cell(scores)}" for column in _measured(columns, [scores]))


def _table(
    title: str,
    columns: Sequence[Column[Scores]],
    groups: Mapping[str, Mapping[str, Scores]],
    intervals: Mapping[str, Interval] | None = None,
    *,
    figures: str = "",
    note: str = "",
) -> Table:
    """Scores by heading and name of the row, in the columns that were measured for any row.

    The model's headlines have their `intervals`, by name of the figure, beside them.
    """
    used = _measured(columns, [scores for rows in groups.values() for scores in rows.values()])

    def bounds(heading: str, name: str, column: Column[Scores]) -> str:
        figure = f"{heading}_{column.figure}" if heading else column.figure
        found = (intervals or {}).get(figure) if name == MODEL and column.headline else None
        return "" if found is None else column.between(found)

    return Table(
        title,
        columns=tuple(column.label for column in used),
        groups={
            heading.replace("_to_", " → "): tuple(
                Row(
                    name,
                    tuple(column.cell(scores) for column in used),
                    tuple(bounds(heading, name, column) for column in used),
                )
                for name, scores in rows.items()
            )
            for heading, rows in groups.items()
        },
        headlines=tuple(column.label for column in used if column.headline),
        figures=figures,
        note=note,
    )


def _measured(columns: Sequence[Column[Scores]], rows: Sequence[Scores]) -> list[Column[Scores]]:
    return [column for column in columns if any(column.value(scores) is not None for scores in rows)]


def _by_question(title: str, kinds: Mapping[str, Mapping[str, AnswerScores]]) -> Table:
    """The main scores, each with a row for a type or text of question and a column for each kind of answer."""
    found = kinds.values()
    scored = [
        name
        for name in SCORED
        if all(name in scores for scores in found) and any(scores[name].num_questions for scores in found)
    ]

    def row(kind: str, column: Column[AnswerScores]) -> Row:
        scores = [kinds[kind][name] for name in scored]
        cells = (column.cell(of_name) if of_name.num_questions else "-" for of_name in scores)
        return Row(shorten(kind, MOST_LETTERS, placeholder=" …"), (f"{kinds[kind][MODEL].num_questions:,}", *cells))

    models = [scores[MODEL] for scores in found]
    headlines = [column for column in _measured(SCORE_COLUMNS, models) if column.headline]
    return Table(
        title,
        columns=("questions", *(SCORED[name] for name in scored)),
        groups={column.label: tuple(row(kind, column) for kind in kinds) for column in headlines},
    )


def _zero_shot(scores: ZeroShotMetrics, intervals: Mapping[str, Interval]) -> Table:
    templates = ", ".join(f"“{template}”" for template in scores.templates)
    prompts = "one prompt" if len(scores.templates) == 1 else f"the mean of {len(scores.templates)} prompts"
    right = round(scores.accuracy * scores.num_samples)
    return _table(
        "Classification",
        ZERO_SHOT_COLUMNS,
        {"": scores.rows()},
        intervals,
        figures=f"{right:,} of {scores.num_samples:,} images are named right; {len(scores.classes):,} classes",
        note=f"An image is named by the nearest class. A class is {prompts} with its name ({templates}).",
    )


def _linear_probe(probe: LinearProbe, intervals: Mapping[str, Interval]) -> Table:
    right = round(probe.accuracy * probe.num_samples)
    return _table(
        "Linear probe",
        PROBE_COLUMNS,
        {"": probe.rows()},
        intervals,
        figures=f"{right:,} of {probe.num_samples:,} images are named right; {probe.classes:,} classes",
        note=f"A logistic regression on the embeddings of {probe.num_train:,} training images. Its C, {probe.c:g}, "
        "is the best of seven at naming every fifth of them from the others.",
    )


def _space(space: EmbeddingSpace) -> Table:
    figures = _line_of(PAIR_COLUMNS, space)
    return _table("Embedding space", SPACE_COLUMNS, {"": space.modalities}, figures=figures, note=_SPACE_NOTE)
