"""The numbers of an evaluation by flat names, for all that compares runs: `recall_at_1`, `exact_match`, ..."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from impresa.evaluation.results import DirectionMetrics, Evaluation, RetrievalMetrics

LOWER_IS_BETTER = frozenset({"answer_loss", "perplexity", "mean_rank", "median_rank"})
_SHARES = ("recall_at_", "zero_shot_accuracy", "exact_match", "token_f1")


@dataclass(frozen=True)
class FigureKind:
    """How a figure is shown and compared."""

    label: str
    format: str
    """Format specification of its numbers."""
    higher_is_better: bool
    scale: float
    """A difference of figures times this is in units of `unit`."""
    unit: str
    """Unit of differences: "points" (of a hundred) for shares, "" for other numbers."""


def figures(evaluation: Evaluation) -> dict[str, float]:
    """All figures of the model by name, those that were measured.

    `recall_at_K` is the mean of both directions, which also stand alone (`image_to_text_recall_at_K`). A suffix `@D` is
    the figure of embeddings cut to their first D numbers, `:KIND` that of one type of question.
    """
    return dict(_figures(evaluation))


def kind_of(name: str) -> FigureKind:
    """How a figure is shown and compared, by its name with or without suffix."""
    base = name.partition("@")[0].partition(":")[0]
    lower = any(base.endswith(word) for word in LOWER_IS_BETTER)
    label = base.replace("_to_", " → ").replace("recall_at_", "R@").replace("_", " ")
    suffix = name[len(base) :]
    label += f" at {suffix[1:]} dimensions" if suffix.startswith("@") else f" ({suffix[1:]})" if suffix else ""
    if any(word in base for word in _SHARES):
        return FigureKind(label, ".1%", higher_is_better=True, scale=100, unit="points")
    return FigureKind(label, ".3f", higher_is_better=not lower, scale=1, unit="")


def _figures(evaluation: Evaluation) -> Iterator[tuple[str, float]]:
    if evaluation.retrieval is not None:
        yield from _of_retrieval(evaluation.retrieval, "")
    for dim, metrics in evaluation.by_dimension.items():
        yield from _of_retrieval(metrics, f"@{dim}")
    for direction, rows in evaluation.sound.items():
        yield from _of_direction(direction, rows["model"], "") if "model" in rows else ()
    if evaluation.zero_shot is not None:
        yield "zero_shot_accuracy", evaluation.zero_shot.accuracy
    if (answers := evaluation.answers) is not None:
        yield "exact_match", answers.model.exact_match
        yield "token_f1", answers.model.token_f1
        if answers.bleu is not None:
            yield "bleu", answers.bleu
        yield "rouge_l", answers.rouge_l
        yield "answer_loss", answers.loss
        yield "perplexity", answers.perplexity
        for kind, scores in answers.kinds.items():
            yield f"exact_match:{kind}", scores["model"].exact_match


def _of_retrieval(metrics: RetrievalMetrics, suffix: str) -> Iterator[tuple[str, float]]:
    directions = {"image_to_text": metrics.image_to_text, "text_to_image": metrics.text_to_image}
    for k in metrics.image_to_text.recall_at:
        yield f"recall_at_{k}{suffix}", sum(found.recall_at[k] for found in directions.values()) / 2
    for direction, found in directions.items():
        yield from _of_direction(direction, found, suffix)


def _of_direction(direction: str, found: DirectionMetrics, suffix: str) -> Iterator[tuple[str, float]]:
    for k, share in found.recall_at.items():
        yield f"{direction}_recall_at_{k}{suffix}", share
    yield f"{direction}_mean_rank{suffix}", found.mean_rank
    yield f"{direction}_median_rank{suffix}", found.median_rank
