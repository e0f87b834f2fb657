"""The results of an evaluation as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from impresa.evaluation.results import (
    AnswerMetrics,
    AnswerScores,
    DirectionMetrics,
    Evaluation,
    ZeroShotMetrics,
    direction_title,
)


def print_results(evaluation: Evaluation, console: Console) -> None:
    """Print what was found: retrieval or answers, of the model and the baselines, zero-shot accuracy, bad samples."""
    for part in _parts(evaluation):
        console.print(part, soft_wrap=isinstance(part, Text))


def _parts(evaluation: Evaluation) -> Iterator[RenderableType]:
    if evaluation.answers is not None:
        yield from _answers(evaluation, evaluation.answers)
        yield from _bad_samples(evaluation)
        return
    images, texts, distinct = evaluation.num_images, evaluation.num_texts, evaluation.num_distinct_texts
    sounds = f", {evaluation.num_sounds:,} sounds" if evaluation.num_sounds else ""
    yield Text(f"{evaluation.data}: {images:,} images, {texts:,} captions ({distinct:,} distinct){sounds}", style="dim")
    if evaluation.directions():
        yield _retrieval(evaluation)
    if evaluation.zero_shot is not None:
        yield Text(_zero_shot(evaluation.zero_shot))
    yield from _bad_samples(evaluation)


def _bad_samples(evaluation: Evaluation) -> Iterator[Text]:
    if evaluation.bad_samples:
        first, num_bad = evaluation.bad_samples[0], len(evaluation.bad_samples)
        yield Text(f"bad samples, skipped: {num_bad:,}; the first is {first.id}: {first.reason}", style="yellow")


def _answers(evaluation: Evaluation, answers: AnswerMetrics) -> Iterator[RenderableType]:
    images, texts, distinct = evaluation.num_images, evaluation.num_texts, evaluation.num_distinct_texts
    yield Text(f"{evaluation.data}: {images:,} images, {texts:,} questions ({distinct:,} distinct)", style="dim")
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(("", "questions", "exact match", "token F1")):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for name, scores in answers.rows().items():
        table.add_row(name, *_answer_cells(scores), style="bold" if name == "model" else "")
    for kind, by_name in answers.kinds.items():
        table.add_row(Text(f"  {kind}"), *_answer_cells(by_name["model"]))  # a string would be read as markup
    yield table
    bleu = "" if answers.bleu is None else f"BLEU {answers.bleu:.3f}, "
    yield Text(f"loss {answers.loss:.3f}, perplexity {answers.perplexity:.2f}, {bleu}ROUGE-L {answers.rouge_l:.3f}")
    if not answers.looks_at_images:
        yield Text("the model is not looking: other images give the same answers", style="yellow")


def _answer_cells(scores: AnswerScores) -> list[str]:
    return [f"{scores.num_questions:,}", f"{scores.exact_match:.1%}", f"{scores.token_f1:.1%}"]


def _retrieval(evaluation: Evaluation) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in ("R@1", "R@5", "R@10", "median rank", "mean rank"):
        table.add_column(name, justify="right", no_wrap=True)
    for direction, rows in evaluation.directions().items():
        table.add_row(direction_title(direction), style="dim")
        for name, metrics in rows.items():
            table.add_row(f"  {name}", *_cells(metrics), style="bold" if name == "model" else "")
    return table


def _cells(metrics: DirectionMetrics) -> list[str]:
    recalls = [f"{metrics.recall_at[k]:.1%}" for k in (1, 5, 10)]
    return [*recalls, f"{metrics.median_rank:g}", f"{metrics.mean_rank:.1f}"]


def _zero_shot(scores: ZeroShotMetrics) -> str:
    return (
        f"zero-shot accuracy {scores.accuracy:.1%} ({scores.num_samples:,} images, {len(scores.classes)} classes; "
        f"most frequent class {scores.majority:.1%}, chance {scores.chance:.1%})"
    )
