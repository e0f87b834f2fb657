"""The validation of an alignment."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor

from impresa.evaluation.retrieval import retrieval_metrics
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.model import AlignmentOutput
from impresa.tasks.validation import Means, Processes, validated

NUM_RETRIEVED = 4096
"""Validation samples, of all processes together, that retrieval is measured on; more would take long on a CPU."""


@dataclass
class _Rows:
    """Samples of which retrieval is measured."""

    images: Tensor
    texts: Tensor
    captions: list[str]
    keys: list[int] | list[str]
    """Equal for equal images."""


class AlignmentValidation:
    """Loss and logs of the model as means over samples, and retrieval over the first samples, one caption each.

    The samples of a batch are the candidates of its loss. Batches come in the order of the data, those of the first
    process first, and are the same on any number of processes: so are the metrics.
    """

    def __init__(self, group: Processes) -> None:
        self._group = group
        self._means = Means()
        self._rows: list[_Rows] = []

    def add(self, batch: Batch, output: AlignmentOutput) -> None:
        self._means.add(validated(output), batch.weight if batch.weight > 1 else 0)  # one alone has no wrong answer
        num_kept = sum(len(rows.captions) for rows in self._rows)
        if not {"image", "text"} <= output.embeddings.keys() or num_kept >= NUM_RETRIEVED:
            return
        has_both = torch.tensor([bool(caption) for caption in batch.captions])
        if batch.image_present is not None:
            has_both &= batch.image_present.cpu()
        images, texts = (output.embeddings[name].float().cpu()[has_both] for name in ("image", "text"))
        keys = batch.keys["image"].tolist() if batch.keys else batch.ids
        chosen = has_both.tolist()
        self._rows.append(_Rows(images, texts, list(compress(batch.captions, chosen)), list(compress(keys, chosen))))

    def metrics(self) -> dict[str, float]:
        found = self._means.over(self._group)
        gathered = self._group.gather(self._rows)
        captions = [caption for rows in gathered for caption in rows.captions][:NUM_RETRIEVED]
        if captions:
            images = torch.cat([rows.images for rows in gathered])
            texts = torch.cat([rows.texts for rows in gathered])[:NUM_RETRIEVED]
            keys = [key for rows in gathered for key in rows.keys][:NUM_RETRIEVED]
            first: dict[int | str, int] = {}
            for position, key in enumerate(keys):
                first.setdefault(key, position)
            row = {key: number for number, key in enumerate(first)}  # of each different image
            image_of_caption = torch.tensor([row[key] for key in keys])
            retrieval = retrieval_metrics(images[list(first.values())], texts, image_of_caption, captions)
            both = (retrieval.image_to_text.recall_at[1], retrieval.text_to_image.recall_at[1])
            found["val_image_to_text_recall_at_1"], found["val_text_to_image_recall_at_1"] = both
            found["val_recall"] = sum(both) / 2
        return found
