"""The validation of an alignment."""

from __future__ import annotations

from itertools import compress

import torch
from torch import Tensor

from impresa.evaluation.retrieval import retrieval_metrics
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.model import AlignmentOutput
from impresa.tasks.validation import Means, Processes, validated

NUM_RETRIEVED = 4096
"""Validation samples, of all processes together, that retrieval is measured on; more would take long on a CPU."""


class AlignmentValidation:
    """Loss and logs of the model as means over samples, and retrieval over the first samples, one caption each."""

    def __init__(self, group: Processes) -> None:
        self._group = group
        self._means = Means()
        self._embedded: list[tuple[Tensor, Tensor, list[str]]] = []

    def add(self, batch: Batch, output: AlignmentOutput) -> None:
        self._means.add(validated(output), batch.weight)
        num_kept = sum(len(captions) for *_, captions in self._embedded) * self._group.world_size
        if not {"image", "text"} <= output.embeddings.keys() or num_kept >= NUM_RETRIEVED:
            return
        rows = [bool(caption) for caption in batch.captions]
        if batch.image_present is not None:
            rows = (batch.image_present.cpu() & torch.tensor(rows)).tolist()
        image, text = (output.embeddings[name].float().cpu()[torch.tensor(rows)] for name in ("image", "text"))
        self._embedded.append((image, text, list(compress(batch.captions, rows))))

    def metrics(self) -> dict[str, float]:
        found = {name: value.item() for name, value in self._means.over(self._group).items()}
        embedded = self._group.gather(self._embedded)
        captions = [caption for *_, captions in embedded for caption in captions]
        if captions:
            images = torch.cat([image for image, _, _ in embedded])
            texts = torch.cat([text for _, text, _ in embedded])
            retrieval = retrieval_metrics(images, texts, torch.arange(len(images)), captions)
            both = (retrieval.image_to_text.recall_at[1], retrieval.text_to_image.recall_at[1])
            found["val_image_to_text_recall_at_1"], found["val_text_to_image_recall_at_1"] = both
            found["val_recall"] = sum(both) / 2
        return found
