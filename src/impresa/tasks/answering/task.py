"""The vision-language model: a decoder behind the encoders, which answers questions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from impresa.config.decoder import DecoderConfig
from impresa.config.paths import expanded
from impresa.config.runs import read_run
from impresa.data.chat import ChatFormat, load_chat, prepare_chat
from impresa.data.dialogue import ask_for_captions
from impresa.data.lengths import notes_on_dialogues
from impresa.data.preprocessing import Preprocessing, read_stored
from impresa.data.sample import Sample
from impresa.data.sources import Source
from impresa.data.sources.subset import has_images
from impresa.errors import ConfigError
from impresa.evaluation.results import Evaluation
from impresa.run_dir.layout import TOKENIZER, WEIGHTS
from impresa.run_dir.weights import restored
from impresa.tasks.answering.answerer import AnsweringModel
from impresa.tasks.answering.batch import DialogueBatch, DialogueCollator
from impresa.tasks.answering.build import build_vlm, start_from
from impresa.tasks.answering.language_model import (
    LANGUAGE_MODEL,
    PART,
    revision_of_language_model,
    save_language_model,
    size_of_language_model,
)
from impresa.tasks.answering.model import VisionLanguageModel
from impresa.tasks.answering.validation import AnsweringValidation
from impresa.tasks.base import Task
from impresa.tasks.devices import Device
from impresa.tasks.validation import Processes, sizes_of

logger = logging.getLogger(__name__)


class AnsweringTask(Task):
    """Training on questions and answers; the result answers."""

    answers = True
    blind_baseline = "most frequent answers"

    @property
    def decoder(self) -> DecoderConfig:
        """The decoder's settings, which an answering experiment has."""
        assert self.config.decoder is not None
        return self.config.decoder

    def prepare_tokenizer(self, source: Source) -> ChatFormat:
        first = self.decoder.init_from
        if first is None:
            return prepare_chat(self.decoder, source.dialogues())
        if read_run("decoder.init_from", first).decoder is None:
            raise ConfigError(f"decoder.init_from: {first} is an alignment; name it in vision_encoder.checkpoint")
        return load_chat(expanded(first) / TOKENIZER).with_system(self.decoder.system_prompt)

    def prepare(self, source: Source) -> Preprocessing:
        """As in every task; and whether captions and images are taught, here or in the run that is gone on with."""
        preprocessing, first = super().prepare(source), self.decoder.init_from
        before = None if first is None else read_stored(expanded(first))
        return replace(
            preprocessing,
            captions=ask_for_captions(source.dialogues()) or (before is not None and before.captions),
            pictures=has_images(source) or (before is not None and before.pictures),
        )

    def notes(self, source: Source, preprocessing: Preprocessing) -> tuple[str, ...]:
        return notes_on_dialogues(source.dialogues(), preprocessing.chat, self.decoder.max_len)

    def collator(self, preprocessing: Preprocessing) -> DialogueCollator:
        most = self.config.dataset.max_images
        return DialogueCollator(preprocessing, self.decoder.max_len, most, self.decoder.tiles)

    def build(self, preprocessing: Preprocessing) -> VisionLanguageModel:
        vocab_size = preprocessing.chat.vocab_size
        if self.decoder.init_from is None:
            return build_vlm(self.config, vocab_size)
        first = expanded(self.decoder.init_from)
        model = build_vlm(self.config, vocab_size, revision=revision_of_language_model(first, self.decoder))
        logger.info(f"decoder.init_from: {start_from(model, first)} tensors from {self.decoder.init_from}")
        return model

    def restore(self, run_dir: Path, preprocessing: Preprocessing) -> VisionLanguageModel:
        revision = revision_of_language_model(run_dir, self.decoder)
        build = partial(build_vlm, self.config, preprocessing.chat.vocab_size, load_weights=False, revision=revision)
        beside = size_of_language_model(run_dir, self.decoder, revision)
        return restored(build, run_dir / WEIGHTS, state_of=VisionLanguageModel.state_to_save, beside=beside)

    def use(self, model: Any, preprocessing: Preprocessing, device: Device | None = None) -> AnsweringModel:
        return AnsweringModel(model, self.config, preprocessing, device)

    def loss_weights(self, batches: Sequence[DialogueBatch], group: Processes) -> list[float]:
        """Each batch's share of all processes' tokens, times their number, because gradients are averaged over them:
        the loss is the mean over the supervised tokens of the step, wherever they are."""
        sizes = sizes_of(batches)
        return (group.world_size * sizes / group.sum(sizes).sum().clamp(min=1)).tolist()

    def validation(self, group: Processes) -> AnsweringValidation:
        return AnsweringValidation(group)

    def evaluate(self, model: Any, source: Source, **options: Any) -> Evaluation:
        from impresa.tasks.answering.evaluate import evaluate_answers

        evaluation = evaluate_answers(model, source, **options)
        return replace(evaluation, notes=self.notes(source, model.preprocessing))

    def words_of(self, sample: Sample) -> str | None:
        return sample.dialogues[0].turns[0].question if sample.dialogues else None

    def save_architectures(self, model: Any, folder: Path) -> None:
        super().save_architectures(model, folder)
        if model.decoder.architecture is not None:
            save_language_model(folder / PART, self.decoder, model.decoder)

    def standing_on(self, run_dir: Path) -> AnsweringTask:
        config = super().standing_on(run_dir).config
        folder = run_dir / LANGUAGE_MODEL
        if (folder / "config.json").is_file():
            config = replace(config, decoder=replace(self.decoder, model=str(folder)))
        return AnsweringTask(config)
