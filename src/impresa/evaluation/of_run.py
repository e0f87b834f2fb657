"""Evaluate the model of a run, whichever kind it is."""

from __future__ import annotations

from impresa.data.sources import Source
from impresa.evaluation.answers import evaluate_answers
from impresa.evaluation.evaluate import evaluate
from impresa.evaluation.results import Evaluation
from impresa.models.answerer import AnsweringModel
from impresa.models.embedder import EmbeddingModel


def evaluate_run(
    model: EmbeddingModel | AnsweringModel,
    source: Source,
    *,
    data: str,
    train_source: Source | None = None,
    batch_size: int | None = None,
    show_progress: bool = False,
) -> Evaluation:
    """Retrieval and classification of a model that embeds, answers of one that answers.

    Arguments and errors are those of `evaluate` and `evaluate_answers`.
    """
    if isinstance(model, AnsweringModel):
        return evaluate_answers(
            model, source, data=data, train_source=train_source, batch_size=batch_size, show_progress=show_progress
        )
    return evaluate(
        model, source, data=data, train_source=train_source, batch_size=batch_size, show_progress=show_progress
    )
