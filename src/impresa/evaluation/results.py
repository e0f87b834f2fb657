"""Results of an evaluation as plain dataclasses, and beside each the columns that tables show of it.

They are written to `evaluation.json` and read back by the report; nothing here needs torch, so that a report can be
made from files alone. A new metric is a field with a default (stored evaluations lack it) and a `Column`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AllowInfNan, Field, InstanceOf, TypeAdapter

from impresa.evaluation.bootstrap import Interval, PerQuery, Statistic
from impresa.evaluation.gallery import Gallery
from impresa.evaluation.predictions import Prediction, write_predictions
from impresa.files import refuse_links, write_atomic
from impresa.json_files import Count, read_json
from impresa.run_dir.layout import EVALUATION, GALLERY, PREDICTIONS

RECALL_AT = (1, 5, 10)
HISTOGRAM, RIDGE = "colour histogram", "ridge baseline"
"""Names of the baselines of retrieval that are fitted, see `impresa.evaluation.baselines`."""
Scores = TypeVar("Scores")
Queries = Annotated[InstanceOf[PerQuery] | None, Field(exclude=True)]
"""Scores of single queries, kept in memory for intervals and comparisons and never stored."""
Statistics = Annotated[dict[str, InstanceOf[Statistic]], Field(exclude=True)]
"""Figures by name as functions of sums over items, kept as `Queries` are."""
Share = Annotated[float, Field(ge=0, le=1 + 1e-9)]
"""Sums of shares are rounded."""


@dataclass(frozen=True)
class Column(Generic[Scores]):
    """A metric as every table shows it."""

    label: str
    format: str
    """Format specification of the numbers, for example ".1%"."""
    value: Callable[[Scores], float | None]
    """Gets the number out of the results of one row; None where it was not measured."""
    headline: bool = False
    """A share (0 to 1) that the report shows on top as well."""
    figure: str = ""
    """Name of a headline in `impresa.evaluation.figures`, without the direction; its interval is found by it."""

    def cell(self, scores: Scores) -> str:
        """The number as text; "-" where it was not measured."""
        value = self.value(scores)
        return "-" if value is None else format(value, self.format)

    def between(self, interval: Interval) -> str:
        """The bounds of an interval as text, in the numbers' unit."""
        return " to ".join(format(bound, self.format).rstrip("%") for bound in (interval.low, interval.high))


@dataclass(frozen=True)
class DirectionMetrics:
    """Ranks of the right answers to queries of one modality among candidates of the other."""

    recall_at: dict[int, Share]
    """R@k: share of queries (0 to 1) with a right answer among the first k."""
    mean_rank: float
    """Mean rank of the best right answer; 1 is perfect."""
    median_rank: float
    """Median of the same ranks."""
    num_queries: Count
    """Queries that have a right answer."""
    num_candidates: Count
    mrr: Share | None = None
    """Mean of 1 / rank of the best right answer, 0 to 1; None, as the next two, in evaluations of older versions."""
    mean_average_precision: Share | None = None
    """Mean over queries of the average precision, 0 to 1: the ranks of all right answers count."""
    ndcg: Share | None = None
    """Mean over queries of the normalised discounted cumulative gain, 0 to 1, without a cut."""
    queries: Queries = field(default=None, compare=False, repr=False)
    """`rank`, `mrr`, `map` and `ndcg` of each query."""


def _recall_at(k: int) -> Callable[[DirectionMetrics], float | None]:
    return lambda found: found.recall_at.get(k)


RETRIEVAL_COLUMNS: tuple[Column[DirectionMetrics], ...] = (
    *(Column(f"R@{k}", ".1%", _recall_at(k), headline=k == 1, figure=f"recall_at_{k}") for k in RECALL_AT),
)
RANKING_COLUMNS: tuple[Column[DirectionMetrics], ...] = (
    Column("MRR", ".3f", lambda found: found.mrr),
    Column("mAP", ".3f", lambda found: found.mean_average_precision),
    Column("NDCG", ".3f", lambda found: found.ndcg),
    Column("median rank", "g", lambda found: found.median_rank),
    Column("mean rank", ".1f", lambda found: found.mean_rank),
)


@dataclass(frozen=True)
class RetrievalMetrics:
    """Retrieval in both directions."""

    image_to_text: DirectionMetrics
    text_to_image: DirectionMetrics

    def __post_init__(self) -> None:
        if self.image_to_text.recall_at.keys() != self.text_to_image.recall_at.keys():
            raise ValueError("the two directions have the recall at other numbers of answers")


@dataclass(frozen=True)
class Margin:
    """The model beside a baseline, by the mean of both directions' MRR."""

    model: Share
    baseline: Share
    interval: Interval | None
    """95%, of their difference, paired over images."""

    @property
    def value(self) -> float:
        """Positive where the model finds more."""
        return self.model - self.baseline


@dataclass(frozen=True)
class ZeroShotMetrics:
    """Classification of images by the nearest class name, without training on labels."""

    classes: tuple[str, ...]
    """Class names; their order is that of the confusion matrix."""
    templates: tuple[str, ...]
    """Prompts whose text embeddings are averaged for each class."""
    num_samples: Count
    """Images that have a label; one with two labels counts once with each, and can be named right only once."""
    accuracy: Share
    """Share of images named right."""
    per_class_accuracy: dict[str, Share]
    """The same for the images of each class; classes without an image are left out."""
    confusion: tuple[tuple[Count, ...], ...]
    """Number of images: rows are true classes, columns the classes named."""
    chance: Share
    """Expected accuracy of guessing: 1 / number of classes."""
    majority: Share
    """Accuracy of always naming the most frequent class of these very images."""
    queries: Queries = field(default=None, compare=False, repr=False)
    """`right` of each image and label."""

    def __post_init__(self) -> None:
        if {len(self.classes)} != {len(self.confusion), *map(len, self.confusion)}:
            raise ValueError(
                f"the confusion matrix does not have a row and a column for each of {len(self.classes)} classes"
            )

    def rows(self) -> dict[str, float]:
        """Accuracies by name, in the order of a table."""
        return {"model": self.accuracy, "most frequent class": self.majority, "chance": self.chance}

    def confusion_shares(self) -> list[list[float]]:
        """The confusion matrix with rows that sum to 1 (or are 0, for classes without an image)."""
        return [[count / max(sum(row), 1) for count in row] for row in self.confusion]


ZERO_SHOT_COLUMNS: tuple[Column[float], ...] = (
    Column("zero-shot accuracy", ".1%", float, headline=True, figure="zero_shot_accuracy"),
)


@dataclass(frozen=True)
class LinearProbe:
    """A logistic regression from the training images' embeddings to their labels, on the images of the test."""

    accuracy: Share
    """Share of test images named right; those of a class that training has not are wrong."""
    majority: Share
    """Accuracy of always naming the most frequent class of the training images."""
    num_train: Count
    """Training images with a label, counted in the same way."""
    num_samples: Count
    """Test images with a label; one with two labels counts once with each."""
    classes: Count
    """Classes of the training images."""
    c: float
    """Inverse strength of the regularisation, chosen on training images."""
    queries: Queries = field(default=None, compare=False, repr=False)
    """`right` of each image and label."""

    def rows(self) -> dict[str, float]:
        """Accuracies by name, in the order of a table."""
        return {"model": self.accuracy, "most frequent class": self.majority}


PROBE_COLUMNS: tuple[Column[float], ...] = (
    Column("linear probe accuracy", ".1%", float, headline=True, figure="linear_probe_accuracy"),
)


@dataclass(frozen=True)
class ModalitySpace:
    """How the embeddings of one modality, scaled to length one, fill their space."""

    num_rows: Count
    """Different images, texts or sounds."""
    uniformity: float | None
    """log of the mean of exp(-2 d^2) over pairs at distance d (Wang & Isola 2020, t = 2): 0 where all are equal, the
    lower the more evenly they lie. None of a single row."""
    effective_rank: float
    """exp of the entropy of the singular values (Roy & Vetterli 2007): 1 for a line, the width at most."""
    statistics: Statistics = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class EmbeddingSpace:
    """Geometry of the joint embeddings, see `impresa.evaluation.space`."""

    modalities: dict[str, ModalitySpace] = field(default_factory=dict)
    """By modality: `image`, `text`, `audio`."""
    alignment: float | None = None
    """Mean squared distance of an image and its caption (Wang & Isola 2020, alpha = 2); 0 is perfect."""
    modality_gap: float | None = None
    """Distance between the mean of the images and that of their captions (Liang et al. 2022)."""
    statistics: Statistics = field(default_factory=dict, compare=False, repr=False)


SPACE_COLUMNS: tuple[Column[ModalitySpace], ...] = (
    Column("embeddings", ",", lambda found: found.num_rows),
    Column("effective rank", ".1f", lambda found: found.effective_rank),
    Column("uniformity", ".2f", lambda found: found.uniformity),
)
PAIR_COLUMNS: tuple[Column[EmbeddingSpace], ...] = (
    Column("alignment", ".3f", lambda found: found.alignment),
    Column("modality gap", ".3f", lambda found: found.modality_gap),
)


@dataclass(frozen=True)
class AnswerScores:
    """Agreement of answers with the right ones, both normalised (see `impresa.evaluation.text_scores`)."""

    num_questions: Count
    exact_match: Share
    """Share of answers that are a right one, word for word."""
    token_f1: Share
    """Mean over answers of the F1 of their words with those of the right one, of several the nearest."""
    queries: Queries = field(default=None, compare=False, repr=False)
    """The same of each question, by the names of their fields."""
    vqa_accuracy: Share | None = None
    """Mean accuracy by the rule of the VQA challenge; None unless each question has four right answers or more."""
    anls: Share | None = None
    """Mean similarity to the nearest right answer; None where the data list no right answers."""

    def measured(self) -> dict[str, float]:
        """The scores that were measured, by name."""
        named = {column.figure: column.value(self) for column in SCORE_COLUMNS if column.headline}
        return {name: value for name, value in named.items() if value is not None}


SCORE_COLUMNS: tuple[Column[AnswerScores], ...] = (
    Column("questions", ",", lambda scores: scores.num_questions),
    Column("exact match", ".1%", lambda scores: scores.exact_match, headline=True, figure="exact_match"),
    Column("VQA accuracy", ".1%", lambda scores: scores.vqa_accuracy, headline=True, figure="vqa_accuracy"),
    Column("ANLS", ".1%", lambda scores: scores.anls, headline=True, figure="anls"),
    Column("token F1", ".1%", lambda scores: scores.token_f1, headline=True, figure="token_f1"),
)
SCORED = {"model": "model", "shuffled": "other images", "blind": "most frequent answer"}
"""The answers that are scored: their name in `AnswerMetrics`, and in tables."""


@dataclass(frozen=True)
class AnswerMetrics:
    """Answers of a vision-language model to questions about images."""

    model: AnswerScores
    """Generated answers."""
    shuffled: AnswerScores
    """The same, but each question is asked about another image: what the words alone give away."""
    blind: AnswerScores | None
    """Always the most frequent training answer to the same question, or to its type; None without training data."""
    bleu: float | None
    """Corpus BLEU of the generated answers, 0 to 1; None where no right answer has the four words that it counts."""
    rouge_l: float
    """Mean F1 of their longest common subsequence with the right ones, 0 to 1."""
    loss: float
    """Mean over the answers' tokens of the negative log-likelihood."""
    perplexity: float
    """exp(loss)."""
    kinds: dict[str, dict[str, AnswerScores]] = field(default_factory=dict)
    """By type of question: scores of `model`, `shuffled` and `blind`; empty where questions have no type."""
    texts: dict[str, dict[str, AnswerScores]] = field(default_factory=dict)
    """The same by text of the question, where questions have no type and few texts."""
    statistics: Statistics = field(default_factory=dict, compare=False, repr=False)
    """Of `bleu`, `rouge_l`, `answer_loss` and `perplexity`."""

    def __post_init__(self) -> None:
        if any("model" not in scores for scores in (*self.kinds.values(), *self.texts.values())):
            raise ValueError("a type of question has no scores of the model")

    @property
    def looks_at_images(self) -> bool:
        """True if the right image helps: exact match, or another score, such as the F1 that long answers are judged
        by, exceeds that with other images by two standard errors. True where no other image could be tried."""
        right, wrong = self.model, self.shuffled

        def exceeds(a: float, b: float) -> bool:
            # The variance of a mean of numbers from 0 to 1 is at most this.
            variance = a * (1 - a) / max(right.num_questions, 1) + b * (1 - b) / wrong.num_questions
            return a - b > 2 * math.sqrt(variance)

        if wrong.num_questions == 0:
            return True
        return any(exceeds(getattr(right, name), getattr(wrong, name)) for name in right.measured())

    def rows(self) -> dict[str, AnswerScores]:
        """Scores by name, in the order of a table; without other images where there were none to try."""
        found: dict[str, AnswerScores | None] = {title: getattr(self, name) for name, title in SCORED.items()}
        return {
            title: scores
            for title, scores in found.items()
            if scores is not None and (scores.num_questions or scores is self.model)
        }


ANSWER_COLUMNS: tuple[Column[AnswerMetrics], ...] = (
    Column("loss", ".3f", lambda answers: answers.loss),
    Column("perplexity", ".2f", lambda answers: answers.perplexity),
    Column("BLEU", ".3f", lambda answers: answers.bleu),
    Column("ROUGE-L", ".3f", lambda answers: answers.rouge_l),
)


@dataclass(frozen=True)
class BadSampleNote:
    """A sample that could not be used, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Evaluation:
    """All results of one evaluation. The gallery has a file of its own."""

    data: str
    """The data that were evaluated: a path and a split."""
    num_images: Count
    """Images that were used; equal ones are one, with the captions of all."""
    num_texts: Count
    """Captions of these images, repeated ones included."""
    num_distinct_texts: Count
    bad_samples: tuple[BadSampleNote, ...] = ()
    retrieval: RetrievalMetrics | None = None
    """The model's retrieval; None when the data have no captions."""
    baselines: dict[str, RetrievalMetrics] = field(default_factory=dict)
    """The same metric for simple baselines, by name."""
    margins: dict[str, Margin] = field(default_factory=dict)
    """By name of the baselines that are fitted; empty in evaluations of older versions."""
    reasons: tuple[str, ...] = ()
    """Likely reasons for a model that is below a baseline."""
    num_train: Count | None = None
    """Training images, or rows where these are too many to be read; None where they were not at hand."""
    image_side_px: Count | None = None
    """Median of the images' shorter sides, before the model's transform."""
    share_cut: Share | None = None
    """Mean part of the images' area that the model's square leaves out."""
    by_dimension: dict[int, RetrievalMetrics] = field(default_factory=dict)
    """The model's retrieval with embeddings cut to their first d numbers, for each Matryoshka dimension d."""
    num_sounds: Count = 0
    """Samples with a sound; those with equal sounds and equal images are one."""
    sound: dict[str, dict[str, DirectionMetrics]] = field(default_factory=dict)
    """Retrieval with sounds by direction (`audio_to_text`, `text_to_audio`, `audio_to_image`, `image_to_audio`, and
    for a model that fuses `image+audio_to_text`, `text_to_image+audio`) and name, over the samples that have both;
    empty for a model or data without sound."""
    zero_shot: ZeroShotMetrics | None = None
    """Zero-shot classification; None when the data have fewer than two classes."""
    answers: AnswerMetrics | None = None
    """Answers to questions; None for an alignment model. `num_texts` are the questions then."""
    linear_probe: LinearProbe | None = None
    """None unless it was asked for."""
    space: EmbeddingSpace | None = None
    """None for a model that answers."""
    intervals: dict[str, dict[str, Interval]] = field(default_factory=dict)
    """95% intervals over items, by row of a table (`model`, a baseline) and name of `impresa.evaluation.figures`."""
    before: dict[str, Annotated[float, AllowInfNan(False)]] = field(default_factory=dict)
    """Figures of the model before its training on the same items, by name of `impresa.evaluation.figures`; empty where
    it could do nothing then."""
    notes: tuple[str, ...] = ()
    """Sentences about texts of the data that the model does not read whole."""
    items: str = field(default="", compare=False, repr=False)
    """Digest of the names of all items in order: equal for evaluations that can be compared item by item."""
    gallery: Gallery = field(default_factory=Gallery, compare=False)
    predictions: tuple[Prediction, ...] = field(default=(), compare=False, repr=False)
    """Each answer; written to `predictions.jsonl` and not read back."""

    def retrieval_rows(self) -> dict[str, RetrievalMetrics]:
        """Retrieval by name, in the order of a table: the model whole, cut to fewer dimensions, the baselines."""
        if self.retrieval is None:
            return {}
        return {"model": self.retrieval, **dimension_rows(self.by_dimension), **self.baselines}

    def to_dict(self) -> dict[str, Any]:
        """Everything but gallery and predictions, as JSON types."""
        return _ADAPTER.dump_python(self, mode="json", exclude={"gallery", "items", "predictions"})


_ADAPTER = TypeAdapter(Evaluation)
_AGAIN = "run `impresa eval` on this run again"


def dimension_rows(by_dimension: dict[int, RetrievalMetrics]) -> dict[str, RetrievalMetrics]:
    """Metrics under the names that tables have for embeddings cut to their first numbers."""
    return {f"first {dim} dimensions": metrics for dim, metrics in by_dimension.items()}


def read_evaluation(run_dir: Path, *, gallery: bool = True) -> Evaluation | None:
    """The evaluation stored in a run; None for a run without evaluation.

    Args:
        run_dir: the run.
        gallery: read its examples too, if there are any; their pictures are most of what is stored.

    Raises:
        CheckpointError: the files are there but were not written by this program.
    """
    path, examples = run_dir / EVALUATION, run_dir / GALLERY
    if not path.is_file():
        return None
    evaluation = read_json(path, Evaluation, fix=_AGAIN)
    if not gallery or not examples.is_file():
        return evaluation
    return replace(evaluation, gallery=read_json(examples, Gallery, fix=_AGAIN))


def save_evaluation(evaluation: Evaluation, run_dir: Path) -> None:
    """Write `evaluation.json`, the gallery and `predictions.jsonl` into a run directory, each file at once or not at
    all."""
    refuse_links(run_dir)
    (run_dir / GALLERY).parent.mkdir(exist_ok=True)
    gallery = _ADAPTER.dump_python(evaluation, mode="json", include={"gallery"})["gallery"]
    if evaluation.predictions:
        write_predictions(evaluation.predictions, run_dir / PREDICTIONS)
    write_atomic(run_dir / GALLERY, json.dumps(gallery, ensure_ascii=False) + "\n")
    write_atomic(run_dir / EVALUATION, json.dumps(evaluation.to_dict(), ensure_ascii=False, indent=2) + "\n")
