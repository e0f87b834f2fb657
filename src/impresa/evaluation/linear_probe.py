"""A linear probe: how well a linear classifier on frozen embeddings names classes, the encoder's quality by itself."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from impresa.errors import DataError
from impresa.evaluation.results import LinearProbe
from impresa.evaluation.retrieval import unit_rows
from impresa.evaluation.zero_shot import rightness

CHOICES_OF_C = tuple(10.0**power for power in range(-2, 5))
"""Inverse strengths of the regularisation, the smallest first."""
HELD_OUT = 5
"""Every so many-th training image is held out while C is chosen."""
Labels = Sequence[tuple[int, str]]
"""Row of the image, and its class."""


def linear_probe(train: Tensor, train_labels: Labels, test: Tensor, test_labels: Labels, *, data: str) -> LinearProbe:
    """Fit a logistic regression on (N, E) training embeddings and judge it on (M, E) others, all scaled to length one.

    C is the smallest of `CHOICES_OF_C` that names most of every fifth training image right after training on the rest;
    the classifier is then fitted to all. Nothing of the test is seen before the end.

    Raises:
        DataError: there are fewer than two classes of training images, or no test image has a label.
    """
    classes = sorted({label for _, label in train_labels})
    if len(classes) < 2:
        fault = f"the training images have {'one class' if classes else 'no labels'}"
        raise DataError(f"--linear-probe: {fault}; name the column of labels in dataset.label_column of a run")
    if not test_labels:
        raise DataError(f"--linear-probe: no image of {data} has a label; evaluate data with labels")
    rows, labels = _examples(train, train_labels)
    is_kept = [row % HELD_OUT != HELD_OUT - 1 for row, _ in train_labels]
    c = _best_c(rows, labels, is_kept)
    others, true = _examples(test, test_labels)
    named = _Classifier(rows, labels, c).predict(others)
    is_right = torch.tensor([a == b for a, b in zip(named, true, strict=True)])
    most = Counter(labels).most_common(1)[0][0]
    return LinearProbe(
        accuracy=is_right.double().mean().item(),
        majority=sum(label == most for label in true) / len(true),
        num_train=len(labels),
        num_samples=len(true),
        classes=len(classes),
        c=c,
        queries=rightness(is_right, [row for row, _ in test_labels]),
    )


def _examples(embeddings: Tensor, labels: Labels) -> tuple[Tensor, list[str]]:
    rows, names = zip(*labels, strict=True)
    return unit_rows(embeddings, "image")[list(rows)], list(names)


def _best_c(rows: Tensor, labels: list[str], is_kept: list[bool]) -> float:
    """The choice that is best on the examples that are not kept; 1 where these, or two kept classes, are missing."""
    kept = [i for i, keep in enumerate(is_kept) if keep]
    held_out = [i for i, keep in enumerate(is_kept) if not keep]
    if not held_out or len({labels[i] for i in kept}) < 2:
        return 1.0

    def share_right(c: float) -> float:
        named = _Classifier(rows[kept], [labels[i] for i in kept], c).predict(rows[held_out])
        return sum(a == labels[i] for a, i in zip(named, held_out, strict=True)) / len(held_out)

    return max(CHOICES_OF_C, key=share_right)  # the first of the best


class _Classifier:
    """A fitted logistic regression."""

    def __init__(self, rows: Tensor, labels: list[str], c: float) -> None:
        from sklearn.linear_model import LogisticRegression

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that 1,000 steps were not enough, which changes accuracies little
            self._model = LogisticRegression(C=c, max_iter=1000).fit(rows.numpy(), labels)

    def predict(self, rows: Tensor) -> list[str]:
        named: list[str] = self._model.predict(rows.numpy()).tolist()
        return named
