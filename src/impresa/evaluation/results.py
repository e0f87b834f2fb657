"""The figures of an evaluation as plain dataclasses: written to `evaluation.json`, read back by the report.

Nothing here needs torch, so that a report can be made from files alone.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from impresa.errors import CheckpointError
from impresa.files import write_atomic

EVALUATION_FILE = "evaluation.json"
GALLERY_FILE = "evaluation/gallery.json"


@dataclass(frozen=True)
class DirectionMetrics:
    """How well queries of one modality find their answers among candidates of the other."""

    recall_at: dict[int, float]
    """R@k: share of queries (0 to 1) with a right answer among the first k."""
    mean_rank: float
    """Mean rank of the best right answer; 1 is perfect."""
    median_rank: float
    """Median of the same ranks."""
    num_queries: int
    """Queries that have a right answer."""
    num_candidates: int
    """Candidates that each query is compared with."""


@dataclass(frozen=True)
class RetrievalMetrics:
    """Retrieval in both directions."""

    image_to_text: DirectionMetrics
    text_to_image: DirectionMetrics


@dataclass(frozen=True)
class ZeroShotMetrics:
    """Classification of images by the nearest class name, without training on labels."""

    classes: tuple[str, ...]
    """Class names; their order is that of the confusion matrix."""
    templates: tuple[str, ...]
    """Prompts whose text embeddings are averaged for each class."""
    num_samples: int
    """Images that have a label."""
    accuracy: float
    """Share of images named right."""
    per_class_accuracy: dict[str, float]
    """The same for the images of each class; classes without an image are left out."""
    confusion: tuple[tuple[int, ...], ...]
    """Number of images: rows are true classes, columns the classes named."""
    chance: float
    """Expected accuracy of guessing: 1 / number of classes."""
    majority: float
    """Accuracy of always naming the most frequent class of these very images."""


@dataclass(frozen=True)
class AnswerScores:
    """How well answers agree with the right ones, both normalised (see `impresa.evaluation.text_scores`)."""

    num_questions: int
    """Answers that were compared."""
    exact_match: float
    """Share of answers that are the right one, word for word."""
    token_f1: float
    """Mean over answers of the F1 of their words with those of the right one."""


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

    @property
    def looks_at_images(self) -> bool:
        """Whether the right image helps: exact match, or the F1 that long answers are told by, is beyond that with
        other images by two standard errors. True where no other image could be tried."""
        if self.shuffled.num_questions == 0:
            return True
        pairs = [
            (self.model.exact_match, self.shuffled.exact_match),
            (self.model.token_f1, self.shuffled.token_f1),
        ]
        return any(right - wrong > 2 * self._error(right, wrong) for right, wrong in pairs)

    def _error(self, right: float, wrong: float) -> float:
        """Standard error of the difference of two means of numbers from 0 to 1, at the most."""
        spread = right * (1 - right) / max(self.model.num_questions, 1)
        return math.sqrt(spread + wrong * (1 - wrong) / max(self.shuffled.num_questions, 1))

    def rows(self) -> dict[str, AnswerScores]:
        """Scores by name, in the order of a table; without other images where there were none to try."""
        found = {"model": self.model, "other images": self.shuffled, "most frequent answer": self.blind}
        return {name: scores for name, scores in found.items() if scores is not None and scores.num_questions}


@dataclass(frozen=True)
class AnsweredQuestion:
    """An example for the report."""

    image: str | None
    """The picture as a data URI."""
    question: str
    expected: str
    """The right answer."""
    answer: str
    """The model's."""
    right: bool
    """Whether they match."""
    kind: str | None = None
    """Type of the question."""


@dataclass(frozen=True)
class BadSampleNote:
    """A sample that could not be used, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Answer:
    """One candidate that a query found."""

    score: float
    """Cosine similarity."""
    right: bool
    caption: str | None = None
    """The text found, for an image query."""
    image: str | None = None
    """The picture found as a data URI, for a text query."""


@dataclass(frozen=True)
class Example:
    """A query and the first answers it found, best first."""

    captions: tuple[str, ...]
    """Text query: the query. Image query: the captions that would be right."""
    image: str | None
    """Image query: the picture as a data URI."""
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Gallery:
    """What the report shows beside figures: a few queries at even distances through the data, not picked by hand."""

    image_queries: tuple[Example, ...] = ()
    text_queries: tuple[Example, ...] = ()
    similarity: tuple[tuple[float, ...], ...] = ()
    """Cosine similarities of a small sample: row i is an image, column j the caption of image j."""
    similarity_captions: tuple[str, ...] = ()
    """The captions of that sample."""
    questions: tuple[AnsweredQuestion, ...] = ()
    """Questions and answers of a vision-language model."""


@dataclass(frozen=True)
class Evaluation:
    """All figures of one evaluation. `to_dict` and `from_dict` go to JSON and back; the gallery has its own file."""

    data: str
    """What was evaluated: a path and a split, for people."""
    num_images: int
    """Images that were used."""
    num_texts: int
    """Captions of these images, repeated ones included."""
    num_distinct_texts: int
    """Captions that differ."""
    bad_samples: tuple[BadSampleNote, ...] = ()
    """Samples that were skipped."""
    retrieval: RetrievalMetrics | None = None
    """The model's retrieval; None when the data have no captions."""
    baselines: dict[str, RetrievalMetrics] = field(default_factory=dict)
    """The same metric for simple baselines, by name."""
    by_dimension: dict[int, RetrievalMetrics] = field(default_factory=dict)
    """The model's retrieval with embeddings cut to their first d numbers, for each Matryoshka dimension d."""
    num_sounds: int = 0
    """Sounds that were used."""
    sound: dict[str, dict[str, DirectionMetrics]] = field(default_factory=dict)
    """Retrieval with sounds by direction (`audio_to_text`, `text_to_audio`, `audio_to_image`, `image_to_audio`, and
    for a model that fuses `image+audio_to_text`, `text_to_image+audio`) and name, over the samples that have both;
    empty for a model or data without sound."""
    zero_shot: ZeroShotMetrics | None = None
    """Zero-shot classification; None when the data have fewer than two classes."""
    answers: AnswerMetrics | None = None
    """Answers to questions; None for an alignment. `num_texts` are the questions then."""
    gallery: Gallery = field(default_factory=Gallery, compare=False)

    def retrieval_rows(self) -> dict[str, RetrievalMetrics]:
        """Retrieval by name, in the order of a table: the model whole, cut to fewer dimensions, the baselines."""
        if self.retrieval is None:
            return {}
        return {"model": self.retrieval, **dimension_rows(self.by_dimension), **self.baselines}

    def directions(self) -> dict[str, dict[str, DirectionMetrics]]:
        """Retrieval by direction and name: between image and text first, then with sound."""
        rows = self.retrieval_rows()
        image_text = {
            "image_to_text": {name: metrics.image_to_text for name, metrics in rows.items()},
            "text_to_image": {name: metrics.text_to_image for name, metrics in rows.items()},
        }
        return {**(image_text if rows else {}), **self.sound}

    def to_dict(self) -> dict[str, Any]:
        """Everything but the gallery, as JSON types."""
        return _EVALUATION.dump_python(self, mode="json", exclude={"gallery"})

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Evaluation:
        """The evaluation that `to_dict` wrote. Raises `CheckpointError` for anything else."""
        return _validated(tree, EVALUATION_FILE)


def dimension_rows(by_dimension: dict[int, RetrievalMetrics]) -> dict[str, RetrievalMetrics]:
    """Metrics under the names that tables have for embeddings cut to their first numbers."""
    return {f"first {dim} dimensions": metrics for dim, metrics in by_dimension.items()}


def direction_title(direction: str) -> str:
    """A direction as tables show it: `image_to_text` is `image → text`."""
    return direction.replace("_to_", " → ")


def read_evaluation(run_dir: Path) -> Evaluation | None:
    """The evaluation stored in a run, with its gallery if there is one; None for a run without evaluation.

    Raises:
        CheckpointError: the files are there but were not written by this program.
    """
    tree = _read_json(run_dir / EVALUATION_FILE)
    if tree is None:
        return None
    gallery = _read_json(run_dir / GALLERY_FILE)
    return _validated({**tree, "gallery": gallery or {}}, str(run_dir / EVALUATION_FILE))


def save_evaluation(evaluation: Evaluation, run_dir: Path) -> None:
    """Write `evaluation.json` and the gallery into a run directory, each file at once or not at all."""
    gallery = _EVALUATION.dump_python(evaluation, mode="json", include={"gallery"})["gallery"]
    write_atomic(run_dir / GALLERY_FILE, json.dumps(gallery, ensure_ascii=False) + "\n")
    write_atomic(run_dir / EVALUATION_FILE, json.dumps(evaluation.to_dict(), ensure_ascii=False, indent=2) + "\n")


_EVALUATION = TypeAdapter(Evaluation)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); run `impresa eval` on this run again") from error
    return tree if isinstance(tree, dict) else {}


def _validated(tree: dict[str, Any], where: str) -> Evaluation:
    try:
        return _EVALUATION.validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = f"{where}: `{key}`: {first['msg']}; run `impresa eval` on this run again"
        raise CheckpointError(message) from error
