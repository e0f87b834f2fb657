"""Every answer of an evaluation, in the lines of `predictions.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from impresa.files import write_atomic


@dataclass(frozen=True)
class Prediction:
    """A question about a sample, and the answers to it."""

    sample: str
    """Name of the sample in its data."""
    question: str
    kind: str | None
    """Type of the question, if the data name it."""
    answer: str
    """The model's."""
    references: tuple[str, ...]
    """All right answers, as often as they were given."""
    correct: bool
    """An exact match with one of them, both normalised."""
    score: float
    """0 to 1: VQA accuracy, or else ANLS, or else the F1 of words, the first of these that the data are measured by."""
    other_sample: str | None
    """The sample with another image, if there is one, that the question was asked about as well."""
    other_answer: str | None
    """The model's answer about that one."""


def write_predictions(predictions: Iterable[Prediction], path: Path) -> None:
    """Write a JSON object for each answer, in the order in which they were asked; the file appears whole."""
    lines = (json.dumps(asdict(prediction), ensure_ascii=False) for prediction in predictions)
    write_atomic(path, "".join(f"{line}\n" for line in lines))
