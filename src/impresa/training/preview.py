"""What the report shows of a run's data: sizes, and a few training samples after augmentation."""

from __future__ import annotations

from impresa.config.experiment import ExperimentConfig
from impresa.data.sources.base import BadSample, Source
from impresa.evaluation.preview import DataPreview, TrainingSample
from impresa.losses.kinds import KINDS
from impresa.reports.pictures import data_uri
from impresa.tasks.gallery import picture_of, spread
from impresa.training.parts import TrainingData
from impresa.training.plan import make_plan

NUM_SAMPLES = 8


def preview_of(config: ExperimentConfig, data: TrainingData, test_source: Source, world_size: int) -> DataPreview:
    """The preview of a run of so many processes; the samples are at even distances through the training data."""
    num_train = len(data.train_source)
    steps = make_plan(config.trainer, data.num_train_batches(world_size)).steps_per_epoch
    full_batch = config.dataset.batch_size * world_size
    contrasted = full_batch if config.losses.gather_distributed else config.dataset.batch_size
    chance = None if config.decoder is not None else KINDS[config.losses.type].loss_at_chance(contrasted)
    return DataPreview(
        splits={"train": num_train, "val": len(data.val_source), "test": len(test_source)},
        steps_per_epoch=steps,
        has_short_step=num_train != steps * full_batch * config.trainer.accumulate_grad_batches,
        loss_at_chance=chance,
        samples=tuple(_samples(data)),
    )


def _samples(data: TrainingData) -> list[TrainingSample]:
    found = []
    view = data.training_view()
    for index in spread(range(len(data.train_source)), NUM_SAMPLES):
        try:
            sample = view(data.train_source[index], (0, index))
        except BadSample:
            continue
        turns = [dialogue.turns[0] for dialogue in sample.dialogues]
        shown = picture_of(sample)
        picture = None if shown is None else data_uri(shown)
        questions = tuple((turn.question, turn.answer) for turn in turns)
        found.append(TrainingSample(sample.id, picture, () if questions else sample.captions, questions))
    return found
