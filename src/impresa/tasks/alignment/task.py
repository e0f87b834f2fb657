"""The alignment: encoders that share one embedding space."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from impresa.config.describe import Fault
from impresa.config.experiment import PAIR, is_pair
from impresa.config.memory_vlm import both_names
from impresa.config.paths import expanded
from impresa.data.lengths import notes_on_captions
from impresa.data.preprocessing import Preprocessing, Tokenizer, prepare_tokenizer
from impresa.data.sample import Sample
from impresa.data.sources import Source
from impresa.errors import ConfigError, DataError
from impresa.evaluation.results import Evaluation
from impresa.run_dir.layout import WEIGHTS
from impresa.run_dir.weights import restored
from impresa.tasks.alignment.batch import Batch, Collator
from impresa.tasks.alignment.build import build_alignment
from impresa.tasks.alignment.collapse import CollapseWatch, mean_cosine, unit_sums
from impresa.tasks.alignment.embedder import EmbeddingModel
from impresa.tasks.alignment.model import AlignmentModel, AlignmentOutput
from impresa.tasks.alignment.validation import AlignmentValidation
from impresa.tasks.base import Task
from impresa.tasks.devices import Device
from impresa.tasks.validation import Processes, sizes_of

logger = logging.getLogger(__name__)


class AlignmentTask(Task):
    """Contrastive training of the encoders; the result embeds."""

    answers = False
    blind_baseline = "colour histogram and ridge baseline"

    def prepare_tokenizer(self, source: Source) -> Tokenizer:
        run_dir = self.config.text_encoder.checkpoint
        if run_dir is not None:
            return Preprocessing.load(expanded(run_dir)).texts
        return prepare_tokenizer(self.config, source.captions())

    def notes(self, source: Source, preprocessing: Preprocessing) -> tuple[str, ...]:
        return notes_on_captions(source.captions(), preprocessing.texts)

    def collator(self, preprocessing: Preprocessing) -> Collator:
        return Collator(preprocessing, with_negatives=self.config.dataset.negative_column is not None)

    def build(self, preprocessing: Preprocessing) -> AlignmentModel:
        tokenizer = preprocessing.texts
        return build_alignment(self.config, tokenizer.vocab_size, tokenizer.end_id)

    def is_of_use_untrained(self, model: Any) -> bool:
        """True for the halves of one pretrained pair with the heads that join them, or of one run."""
        image, text = self.config.vision_encoder, self.config.text_encoder
        if image.checkpoint is not None and text.checkpoint is not None:
            return expanded(image.checkpoint).resolve() == expanded(text.checkpoint).resolve()
        return is_pair(self.config) and all(getattr(model, part).has_own_head for part in PAIR)

    def restore(self, run_dir: Path, preprocessing: Preprocessing) -> AlignmentModel:
        return restored(partial(self.blank, preprocessing.texts), run_dir / WEIGHTS)

    def blank(self, tokenizer: Tokenizer) -> AlignmentModel:
        """The model for weights that come from elsewhere."""
        return build_alignment(self.config, tokenizer.vocab_size, tokenizer.end_id, load_weights=False)

    def use(self, model: Any, preprocessing: Preprocessing, device: Device | None = None) -> EmbeddingModel:
        return EmbeddingModel(model, self.config, preprocessing, device)

    def loss_weights(self, batches: Sequence[Batch], group: Processes) -> list[float]:
        """Each batch's share of the samples of all processes. A gathered loss knows its rows' share of the batch;
        others count by their own samples, times the number of processes, over which gradients are averaged."""
        sizes = sizes_of(batches)
        every = group.sum(sizes)
        counted = every if self.config.losses.gather_distributed else group.world_size * sizes
        return (counted / every.sum().clamp(min=1)).tolist()

    def check_batches(self, num_train: int, num_val: int, world_size: int) -> None:
        losses, dataset = self.config.losses, self.config.dataset
        if dataset.batch_size * (world_size if losses.gather_distributed else 1) < 2:
            fault = f"1 leaves {losses.type} nothing to tell a sample from, so that nothing is learned"
            fix = "at least 2 (accumulated batches do not meet)"
            if world_size > 1:
                fix += ", or losses.gather_distributed=true"
            raise ConfigError(Fault(both_names("dataset.batch_size"), f"{fault}; {fix}").line())
        if (dataset.eval_batch_size or dataset.batch_size) < 2:
            fault = "1 leaves a validation nothing to tell a sample from, and its loss is always 0; at least 2"
            raise ConfigError(Fault(both_names("dataset.eval_batch_size"), fault).line())
        if num_train < 2:
            fault = "there is one training sample, and nothing to tell it from"
            raise DataError(f"dataset.train_path: {fault}; give at least two")
        if num_val < 2:
            logger.warning(
                "dataset.val_path: there is one validation sample and nothing to tell it from: val_loss is 0"
            )

    def least_samples(self, world_size: int) -> int:
        """Two where a process contrasts its own rows alone."""
        return 0 if self.config.losses.gather_distributed and world_size > 1 else 2

    def train_sums(self, output: AlignmentOutput) -> dict[str, Tensor]:
        modality, embeddings = next(iter(output.embeddings.items()))
        return unit_sums(embeddings.detach()[output.present.get(modality, slice(None))])

    def train_logs(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`mean_cosine`, between the embeddings of all different samples of the step."""
        return {"mean_cosine": mean_cosine(sums)}

    def validation(self, group: Processes) -> AlignmentValidation:
        return AlignmentValidation(group)

    def watch(self, warmup_steps: int, group: Processes) -> CollapseWatch:
        return CollapseWatch(self.config, warmup_steps, group.world_size)

    def evaluate(self, model: Any, source: Source, **options: Any) -> Evaluation:
        from impresa.tasks.alignment.evaluate import evaluate

        evaluation = evaluate(model, source, **options)
        return replace(evaluation, notes=self.notes(source, model.preprocessing))

    def words_of(self, sample: Sample) -> str | None:
        return next(iter(sample.captions), None)
