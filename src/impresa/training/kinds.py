"""What the training loop asks of the two kinds of model, alignment and answering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from impresa.config.experiment import ExperimentConfig
from impresa.data.batch import Batch, DialogueBatch
from impresa.evaluation.retrieval import retrieval_metrics
from impresa.models.alignment import AlignmentOutput
from impresa.models.output import ModelOutput
from impresa.training.collapse import CollapseWatch
from impresa.training.distributed import Group

NUM_RETRIEVED = 4096
"""Validation samples, of all processes together, that retrieval is measured on; more would take long on a CPU."""


class StepWatch(Protocol):
    """Looks at each step of a training run."""

    def look(self, step: int, batches: Sequence[Any], logs: Mapping[str, Tensor]) -> None:
        """See what optimizer step number `step` gave for its batches."""


class Validation(Protocol):
    """Collects one validation."""

    def add(self, batch: Any, output: Any) -> None:
        """Take up what the model gave for a batch."""

    def metrics(self) -> dict[str, float]:
        """Metrics over the whole validation and all processes, by names that begin with `val_`."""


class Task(Protocol):
    """What differs between the kinds of model while they train.

    Batches have a `weight`, what they count in a mean over batches, and a length in samples.
    """

    def loss_weights(self, batches: Sequence[Any], group: Group) -> list[float]:
        """Factor of each batch's loss in a step, so that gradients averaged over processes are those of the step."""

    def train_logs(self, output: Any) -> dict[str, Tensor]:
        """Scalars of a training batch beside those that the model logs itself."""

    def validation(self, group: Group) -> Validation:
        """A new, empty validation."""

    def watch(self, config: ExperimentConfig, warmup_steps: int, group: Group) -> StepWatch:
        """A watch for training runs that do not learn."""


class AlignmentTask:
    """Embeddings that a contrastive loss brings together; a step weighs by samples."""

    def loss_weights(self, batches: Sequence[Batch], group: Group) -> list[float]:
        """Each batch's share of the samples, those of the other processes included."""
        sizes = _sizes(batches)
        every = group.sum(sizes) if len(batches) > 1 else sizes
        return (every / every.sum()).tolist()

    def train_logs(self, output: AlignmentOutput) -> dict[str, Tensor]:
        """`mean_cosine`, between the embeddings of different samples."""
        modality, embeddings = next(iter(output.embeddings.items()))
        return {"mean_cosine": mean_cosine(embeddings.detach()[output.present.get(modality, slice(None))])}

    def validation(self, group: Group) -> AlignmentValidation:
        return AlignmentValidation(group)

    def watch(self, config: ExperimentConfig, warmup_steps: int, group: Group) -> CollapseWatch:
        return CollapseWatch(config, warmup_steps, group.world_size)


class AnsweringTask:
    """A language model that answers; a step weighs by supervised tokens, wherever they are."""

    def loss_weights(self, batches: Sequence[DialogueBatch], group: Group) -> list[float]:
        """Each batch's share of all processes' tokens, times their number, because gradients are averaged over them."""
        sizes = _sizes(batches)
        return (group.world_size * sizes / group.sum(sizes).sum()).tolist()

    def train_logs(self, output: ModelOutput) -> dict[str, Tensor]:
        return {}

    def validation(self, group: Group) -> AnsweringValidation:
        return AnsweringValidation(group)

    def watch(self, config: ExperimentConfig, warmup_steps: int, group: Group) -> NoWatch:
        return NoWatch()


def task_of(config: ExperimentConfig) -> Task:
    """The kind of model that a config describes."""
    return AlignmentTask() if config.decoder is None else AnsweringTask()


class NoWatch:
    """Looks at nothing."""

    def look(self, step: int, batches: Sequence[Any], logs: Mapping[str, Tensor]) -> None:
        return


class Means:
    """Means over batches of unequal weight, on all processes; sums stay tensors, so that no batch waits for another."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, values: Mapping[str, Tensor], weight: int) -> None:
        """Take up the values of a batch; each is kept in float32 at least."""
        for name, value in values.items():
            total, so_far = self._sums.get(name, (torch.zeros((), device=value.device), 0))
            precise = value if value.dtype == torch.float64 else value.float()
            self._sums[name] = (total + precise * weight, so_far + weight)

    def over(self, group: Group) -> dict[str, Tensor]:
        """The means, on the CPU."""
        own = [(name, total.cpu(), weight) for name, (total, weight) in self._sums.items()]
        sums: dict[str, tuple[Tensor, int]] = {}
        for name, total, weight in group.gather(own):
            before, so_far = sums.get(name, (torch.zeros(()), 0))
            sums[name] = (before + total, so_far + weight)
        return {name: total / weight for name, (total, weight) in sums.items()}


class AlignmentValidation:
    """Loss and logs of the model as means over samples, and retrieval over the first samples, one caption each."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._means = Means()
        self._embedded: list[tuple[Tensor, Tensor, list[str]]] = []

    def add(self, batch: Batch, output: AlignmentOutput) -> None:
        self._means.add(_validated(output), batch.weight)
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
            found["val_image_to_text_recall_at_1"] = retrieval.image_to_text.recall_at[1]
            found["val_text_to_image_recall_at_1"] = retrieval.text_to_image.recall_at[1]
        return found


class AnsweringValidation:
    """Loss and logs of the model as means over tokens, exact match over dialogues, and perplexity."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._by_token, self._by_dialogue = Means(), Means()

    def add(self, batch: DialogueBatch, output: ModelOutput) -> None:
        values = _validated(output)
        self._by_dialogue.add({"val_exact_match": values.pop("val_exact_match")}, len(batch.dialogues))
        self._by_token.add(values, batch.weight)

    def metrics(self) -> dict[str, float]:
        found = {**self._by_dialogue.over(self._group), **self._by_token.over(self._group)}
        found["val_perplexity"] = found["val_loss"].exp()
        return {name: value.item() for name, value in found.items()}


def mean_cosine(embeddings: Tensor) -> Tensor:
    """Mean cosine between different rows of (B, E), a scalar; 1 means that the model maps everything to one point."""
    unit = nn.functional.normalize(embeddings.float(), dim=-1)
    num_rows = len(unit)
    total = unit.sum(dim=0).square().sum()
    return (total - num_rows) / max(num_rows * (num_rows - 1), 1)


def _sizes(batches: Sequence[Batch] | Sequence[DialogueBatch]) -> Tensor:
    return torch.tensor([batch.weight for batch in batches], dtype=torch.float64)


def _validated(output: ModelOutput) -> dict[str, Tensor]:
    """What a validation measures of a batch; the state of the logits is no measurement."""
    values = {f"val_{name}": value for name, value in output.logs.items() if not name.startswith("logit_")}
    return {**values, "val_loss": output.loss.detach()}
