"""Zero-shot classification: an image gets the class whose name, set into prompts, lies nearest to it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from impresa.errors import ConfigError
from impresa.evaluation.bootstrap import PerQuery
from impresa.evaluation.results import ZeroShotMetrics
from impresa.evaluation.retrieval import TIE, unit_rows

logger = logging.getLogger(__name__)

SLOT = "{}"
"""Where the class name goes in a prompt template."""


def check_templates(templates: Sequence[str]) -> None:
    """Raise `ConfigError` if there is no template, or if one lacks the `{}` for the class name."""
    if not templates:
        raise ConfigError(f"dataset.prompt_templates: is empty; give at least one, for example 'a photo of a {SLOT}.'")
    fix = f"has no {SLOT}; put {SLOT} where the class name goes"
    if faults := [f"dataset.prompt_templates: {text!r} {fix}" for text in templates if SLOT not in text]:
        raise ConfigError(*faults)


def class_embeddings(
    encode_text: Callable[[list[str]], Tensor], classes: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """(C, E) float64: for each class the mean of its normalised prompt embeddings, normalised (Radford et al. 2021).

    Args:
        encode_text: turns a list of N strings into (N, E).
        classes: C class names, which take the place of `{}` in prompts.
        templates: the prompts.
    """
    check_templates(templates)
    if unnamed := [name for name in classes if name.lstrip("+-").isdecimal() or name in ("False", "True")]:
        prompt = templates[0].replace(SLOT, unnamed[0])
        ways = "give names in dataset.class_names, or as ClassLabel of `datasets` in the schema of a parquet file"
        logger.warning("zero-shot: labels are no names, so that a prompt reads %r; %s", prompt, ways)
    prompts = [template.replace(SLOT, name) for name in classes for template in templates]
    of_prompts = unit_rows(encode_text(prompts), "text")
    return F.normalize(of_prompts.view(len(classes), len(templates), -1).mean(dim=1), dim=1)


def zero_shot_metrics(
    image_embeddings: Tensor,
    labels: Sequence[str],
    of_classes: Tensor,
    classes: Sequence[str],
    templates: Sequence[str],
    *,
    item: Sequence[int] | None = None,
) -> ZeroShotMetrics:
    """Accuracy, accuracy per class and confusion matrix of naming each image by the nearest class embedding.

    A tie counts against the model: it is right only if the true class is nearer than every other.

    Args:
        image_embeddings: (N, E), of any scale.
        labels: N true class names, all among `classes`.
        of_classes: (C, E) from `class_embeddings`.
        classes: C class names.
        templates: the prompts, for the record.
        item: N numbers, from 0, of the image that each row is; without them each is one of its own.
    """
    index = {name: i for i, name in enumerate(classes)}
    true = torch.tensor([index[label] for label in labels], dtype=torch.int64)
    scores = unit_rows(image_embeddings, "image") @ of_classes.T
    scores[torch.arange(len(true)), true] -= TIE
    named = scores.argmax(dim=1)
    num_classes = len(classes)
    confusion = torch.bincount(true * num_classes + named, minlength=num_classes**2).view(num_classes, num_classes)
    per_class = confusion.diagonal() / confusion.sum(dim=1)
    return ZeroShotMetrics(
        classes=tuple(classes),
        templates=tuple(templates),
        num_samples=len(true),
        accuracy=(named == true).double().mean().item(),
        per_class_accuracy={name: per_class[i].item() for name, i in index.items() if confusion[i].any()},
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        chance=1 / num_classes,
        majority=max(Counter(labels).values()) / len(labels),
        queries=rightness(named == true, range(len(true)) if item is None else item),
    )


def rightness(is_right: Tensor, item: Sequence[int]) -> PerQuery:
    """`right` (N,) of naming images, which are the items."""
    items = np.asarray(item, dtype=np.int64)
    return PerQuery({"right": is_right.double().numpy()}, items, int(items.max()) + 1)
