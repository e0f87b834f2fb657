"""The numbers of an evaluation by flat names, for all that compares runs: `recall_at_1`, `exact_match`, ..."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from impresa.evaluation.bootstrap import Median, PerQuery, Statistic, both
from impresa.evaluation.results import AnswerScores, DirectionMetrics, EmbeddingSpace, Evaluation, RetrievalMetrics

LOWER_IS_BETTER = frozenset(
    {"answer_loss", "perplexity", "mean_rank", "median_rank", "alignment", "uniformity", "modality_gap"}
)
_SHARES = ("recall_at_", "accuracy", "exact_match", "token_f1", "anls")
_SHORT = {"mrr": "MRR", "map": "mAP", "ndcg": "NDCG", "bleu": "BLEU", "rouge l": "ROUGE-L"}
_SHORT |= {"token f1": "token F1", "vqa accuracy": "VQA accuracy", "anls": "ANLS"}
_SHARE = (0.0, 1.0)


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


@dataclass(frozen=True)
class Figure:
    """A number of an evaluation."""

    name: str
    value: float
    statistic: Statistic | Median | None = None
    """The same as a function of single items; None where these are not at hand, as in a stored evaluation."""


def figures(evaluation: Evaluation) -> dict[str, float]:
    """All figures of the model by name, those that were measured.

    `recall_at_K` is the mean of both directions, which also stand alone (`image_to_text_recall_at_K`); so are `mrr`,
    `map` and `ndcg`. A suffix `@D` is the figure of embeddings cut to their first D numbers, `:KIND` that of one type
    of question.
    """
    return {figure.name: figure.value for figure in model_figures(evaluation)}


def kind_of(name: str) -> FigureKind:
    """How a figure is shown and compared, by its name with or without suffix."""
    base = name.partition("@")[0].partition(":")[0]
    lower = any(base.endswith(word) for word in LOWER_IS_BETTER)
    label = base.replace("_to_", " → ").replace("recall_at_", "R@").replace("_", " ").replace("zero shot", "zero-shot")
    for word, short in _SHORT.items():
        label = f"{label.removesuffix(word)}{short}" if f" {label}".endswith(f" {word}") else label
    suffix = name[len(base) :]
    label += f" at {suffix[1:]} dimensions" if suffix.startswith("@") else f" ({suffix[1:]})" if suffix else ""
    if any(word in base for word in _SHARES):
        return FigureKind(label, ".1%", higher_is_better=True, scale=100, unit="points")
    return FigureKind(label, ".3f", higher_is_better=not lower, scale=1, unit="")


def figures_by_row(evaluation: Evaluation) -> dict[str, list[Figure]]:
    """The figures of the model and, under the names that tables have for them, of the baselines."""
    rows = {"model": list(model_figures(evaluation))}
    for name, metrics in evaluation.baselines.items():
        rows[name] = list(_of_retrieval(metrics, ""))
    if evaluation.answers is not None:
        for name, scores in evaluation.answers.rows().items():
            rows.setdefault(name, list(_of_answers(scores, "")))
    return rows


def model_figures(evaluation: Evaluation) -> Iterator[Figure]:
    """The figures of the model."""
    if evaluation.retrieval is not None:
        yield from _of_retrieval(evaluation.retrieval, "")
    for dim, metrics in evaluation.by_dimension.items():
        yield from _of_retrieval(metrics, f"@{dim}")
    for direction, rows in evaluation.sound.items():
        for row, found in rows.items():
            cut = _dimension(row)
            if row == "model" or cut:
                yield from _of_direction(direction, found, cut)
    if (shot := evaluation.zero_shot) is not None:
        yield Figure("zero_shot_accuracy", shot.accuracy, _mean(shot.queries, "right"))
    if (probe := evaluation.linear_probe) is not None:
        yield Figure("linear_probe_accuracy", probe.accuracy, _mean(probe.queries, "right"))
    if (answers := evaluation.answers) is not None:
        yield from _of_answers(answers.model, "")
        of_answers = {"rouge_l": answers.rouge_l, "answer_loss": answers.loss, "perplexity": answers.perplexity}
        for name, value in {"bleu": answers.bleu, **of_answers}.items():
            if value is not None:
                yield Figure(name, value, answers.statistics.get(name))
        for kind, scores in answers.kinds.items():
            yield from _of_answers(scores["model"], f":{kind}")
    if evaluation.space is not None:
        yield from _of_space(evaluation.space)


def _dimension(row: str) -> str:
    """`@D` for the row of embeddings cut to their first D numbers, see `dimension_rows`; else nothing."""
    words = row.split()
    return f"@{words[1]}" if len(words) == 3 and words[0] == "first" else ""


def _mean(queries: PerQuery | None, name: str, bounds: tuple[float, float] | None = _SHARE) -> Statistic | None:
    return None if queries is None else queries.mean(name, bounds)


def _of_answers(scores: AnswerScores, suffix: str) -> Iterator[Figure]:
    for name, value in scores.measured().items():
        yield Figure(f"{name}{suffix}", value, _mean(scores.queries, name))


def _of_retrieval(metrics: RetrievalMetrics, suffix: str) -> Iterator[Figure]:
    to_text = list(_of_direction("image_to_text", metrics.image_to_text, suffix))
    to_image = list(_of_direction("text_to_image", metrics.text_to_image, suffix))
    others = {figure.name.removeprefix("text_to_image_"): figure for figure in to_image}
    for figure in to_text:
        name = figure.name.removeprefix("image_to_text_")
        if "_rank" not in name and name in others:
            first, second = figure.statistic, others[name].statistic
            joint = both(first, second) if isinstance(first, Statistic) and isinstance(second, Statistic) else None
            yield Figure(name, (figure.value + others[name].value) / 2, joint)
    yield from (*to_text, *to_image)


def _of_direction(direction: str, found: DirectionMetrics, suffix: str) -> Iterator[Figure]:
    queries = found.queries
    for k, share in found.recall_at.items():
        statistic = None if queries is None else queries.share_within("rank", k)
        yield Figure(f"{direction}_recall_at_{k}{suffix}", share, statistic)
    measured = {"mrr": found.mrr, "map": found.mean_average_precision, "ndcg": found.ndcg}
    for name, value in measured.items():
        if value is not None:
            yield Figure(f"{direction}_{name}{suffix}", value, _mean(queries, name))
    yield Figure(f"{direction}_mean_rank{suffix}", found.mean_rank, _mean(queries, "rank", None))
    median = None if queries is None else Median(queries, "rank")
    yield Figure(f"{direction}_median_rank{suffix}", found.median_rank, median)


def _of_space(space: EmbeddingSpace) -> Iterator[Figure]:
    for name, value in {"alignment": space.alignment, "modality_gap": space.modality_gap}.items():
        if value is not None:
            yield Figure(name, value, space.statistics.get(name))
    for modality, found in space.modalities.items():
        for name, value in {"effective_rank": found.effective_rank, "uniformity": found.uniformity}.items():
            if value is not None:
                yield Figure(f"{modality}_{name}", value, found.statistics.get(name))
