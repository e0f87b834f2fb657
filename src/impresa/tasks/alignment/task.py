"""The alignment: encoders that share one embedding space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from impresa.config.paths import expanded
from impresa.data.lengths import notes_on_captions
from impresa.data.preprocessing import Preprocessing, Tokenizer, prepare_tokenizer
from impresa.data.sources import Source
from impresa.evaluation.results import Evaluation
from impresa.run_dir.layout import WEIGHTS
from impresa.run_dir.weights import read_weights
from impresa.tasks.alignment.batch import Batch, Collator
from impresa.tasks.alignment.build import build_alignment
from impresa.tasks.alignment.collapse import CollapseWatch, mean_cosine
from impresa.tasks.alignment.embedder import EmbeddingModel
from impresa.tasks.alignment.model import AlignmentModel, AlignmentOutput
from impresa.tasks.alignment.validation import AlignmentValidation
from impresa.tasks.base import Task
from impresa.tasks.devices import Device
from impresa.tasks.validation import Processes, sizes_of


class AlignmentTask(Task):
    """Contrastive training of the encoders; the result embeds."""

    answers = False
    blind_baseline = "colour histogram"

    def prepare_tokenizer(self, source: Source) -> Tokenizer:
        run_dir = self.config.text_encoder.checkpoint
        if run_dir is not None:
            return Preprocessing.load(expanded(run_dir)).texts
        return prepare_tokenizer(self.config, source.captions())

    def notes(self, source: Source, preprocessing: Preprocessing) -> tuple[str, ...]:
        return notes_on_captions(source.captions(), preprocessing.texts)

    def collator(self, preprocessing: Preprocessing) -> Collator:
        return Collator(preprocessing)

    def build(self, preprocessing: Preprocessing) -> AlignmentModel:
        tokenizer = preprocessing.texts
        return build_alignment(self.config, tokenizer.vocab_size, tokenizer.end_id)

    def restore(self, run_dir: Path, preprocessing: Preprocessing) -> AlignmentModel:
        tokenizer = preprocessing.texts
        model = build_alignment(self.config, tokenizer.vocab_size, tokenizer.end_id, load_weights=False)
        model.load_state_dict(read_weights(run_dir / WEIGHTS))
        return model

    def use(self, model: Any, preprocessing: Preprocessing, device: Device | None = None) -> EmbeddingModel:
        return EmbeddingModel(model, self.config, preprocessing, device)

    def loss_weights(self, batches: Sequence[Batch], group: Processes) -> list[float]:
        """Each batch's share of the samples, those of the other processes included."""
        sizes = sizes_of(batches)
        every = group.sum(sizes) if len(batches) > 1 else sizes
        return (every / every.sum()).tolist()

    def train_logs(self, output: AlignmentOutput) -> dict[str, Tensor]:
        """`mean_cosine`, between the embeddings of different samples."""
        modality, embeddings = next(iter(output.embeddings.items()))
        return {"mean_cosine": mean_cosine(embeddings.detach()[output.present.get(modality, slice(None))])}

    def validation(self, group: Processes) -> AlignmentValidation:
        return AlignmentValidation(group)

    def watch(self, warmup_steps: int, group: Processes) -> CollapseWatch:
        return CollapseWatch(self.config, warmup_steps, group.world_size)

    def evaluate(self, model: Any, source: Source, **options: Any) -> Evaluation:
        from impresa.tasks.alignment.evaluate import evaluate

        return replace(evaluate(model, source, **options), notes=self.notes(source, model.preprocessing))
