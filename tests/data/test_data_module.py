"""The DataModule by itself and under Lightning's Trainer, with a stop in the middle of an epoch."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch

from impresa.config.experiment import DatasetConfig, ExperimentConfig, ShapesConfig
from impresa.data.images import ImageTransform
from impresa.data.preprocessing import Preprocessing
from impresa.data.tokenizers import TextTokenizer, train_tokenizer
from impresa.errors import DataError
from impresa.tasks.alignment.batch import Batch
from impresa.training.data import DataModule
from pictures import numbered, write_jsonl

CONFIG = DatasetConfig(
    image_size=16, batch_size=4, num_workers=0, shapes=ShapesConfig(num_train=22, num_val=10, num_test=4)
)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer(["a small red circle", "number 1 2 3"], 300, 40)


def data(tokenizer: TextTokenizer, bad: Path | None = None, seed: int = 0, **changes: Any) -> DataModule:
    config = ExperimentConfig(seed=seed, dataset=replace(CONFIG, **changes))
    return DataModule(config, Preprocessing(tokenizer, ImageTransform(16)), bad)


class Recorder(lightning.LightningModule):
    """Remembers which samples each step saw; `stop_after` steps it saves a checkpoint and stops."""

    def __init__(self, stop_after: int | None = None, checkpoint: Path | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[str]] = []
        self.validated: list[list[str]] = []
        self._stop_after = stop_after
        self._checkpoint = checkpoint

    def training_step(self, batch: Batch) -> torch.Tensor:
        self.seen.append(batch.ids)
        return self.weight * batch.image.mean()

    def validation_step(self, batch: Batch) -> None:
        self.validated.append(batch.ids)

    def on_train_batch_end(self, *_: object) -> None:
        if len(self.seen) == self._stop_after:
            self.trainer.save_checkpoint(self._checkpoint)
            self.trainer.should_stop = True

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(model: Recorder, module: DataModule, epochs: int, checkpoint: Path | None = None) -> None:
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, module, ckpt_path=checkpoint)


def test_batches_of_training_and_validation(tokenizer: TextTokenizer) -> None:
    module = data(tokenizer, eval_batch_size=6)
    train, val = module.train_dataloader(), module.val_dataloader()
    assert (len(train), len(val)) == (6, 2)
    batch = next(iter(train))
    assert batch.image.shape == (4, 3, 16, 16)
    assert batch.image.dtype == torch.float32
    assert batch.input_ids.shape == batch.attention_mask.shape
    assert [id for batch in val for id in batch.ids] == [f"shapes/val/{i:06d}" for i in range(10)]
    assert len(data(tokenizer).val_dataloader()) == 3


def test_training_augments_and_validation_does_not(tokenizer: TextTokenizer) -> None:
    module = data(tokenizer)
    plain = data(tokenizer, augmentation="none")
    assert not torch.equal(next(iter(module.train_dataloader())).image, next(iter(plain.train_dataloader())).image)
    assert torch.equal(next(iter(module.val_dataloader())).image, next(iter(plain.val_dataloader())).image)


def test_the_seed_of_the_experiment_decides_the_order(tokenizer: TextTokenizer) -> None:
    orders = [[batch.ids for batch in data(tokenizer, seed=seed).train_dataloader()] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_processes_share_the_batches(tokenizer: TextTokenizer) -> None:
    seen = []
    for rank in range(2):
        module = data(tokenizer)
        module.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        loaders = module.train_dataloader(), module.val_dataloader()
        seen.append([[batch.ids for batch in loader] for loader in loaders])
    whole = data(tokenizer, batch_size=8)
    for number, loader in enumerate((whole.train_dataloader(), whole.val_dataloader())):
        assert [batch.ids for batch in loader] == [a + b for a, b in zip(seen[0][number], seen[1][number], strict=True)]


def test_caption_dropout_reaches_the_captions_of_training_alone(tokenizer: TextTokenizer) -> None:
    module, plain = data(tokenizer, caption_dropout=0.5), data(tokenizer)
    words = [
        sum(len(caption.split()) for batch in loader for caption in batch.captions)
        for loader in (
            module.train_dataloader(),
            plain.train_dataloader(),
            module.val_dataloader(),
            plain.val_dataloader(),
        )
    ]
    assert words[0] < 0.7 * words[1]
    assert words[2] == words[3]


def test_settings_without_workers_are_off_with_a_notice(
    tokenizer: TextTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    loader = data(tokenizer).train_dataloader()
    assert (loader.prefetch_factor, loader.persistent_workers) == (None, False)
    assert "dataset.num_workers is 0: prefetch_factor and persistent_workers are off" in caplog.text


def test_settings_of_workers_reach_the_loader(tokenizer: TextTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    loader = data(tokenizer, num_workers=2, prefetch_factor=3, persistent_workers=False).train_dataloader()
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (2, 3, False)
    assert data(tokenizer, num_workers=2).train_dataloader().persistent_workers
    assert not caplog.messages


@pytest.mark.parametrize("asked", [True, False])
def test_memory_is_pinned_only_for_a_gpu(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    assert not data(tokenizer, pin_memory=asked).train_dataloader().pin_memory
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert data(tokenizer, pin_memory=asked).train_dataloader().pin_memory is asked


def test_own_data_are_divided_and_their_bad_samples_listed(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    rows = [*numbered(8), {"image": "8.png", "caption": ""}]
    module = data(
        tokenizer,
        tmp_path / "bad_samples.jsonl",
        train_path=str(write_jsonl(tmp_path / "pictures", rows)),
        val_fraction=0.3,
        max_bad_fraction=0.5,
    )
    seen = [
        [id for batch in loader for id in batch.ids] for loader in (module.train_dataloader(), module.val_dataloader())
    ]
    assert sorted(seen[0] + seen[1]) == [f"{i}.png" for i in range(8)]
    assert '"id": "8.png", "reason": "the caption is empty"' in (tmp_path / "bad_samples.jsonl").read_text()


def test_too_many_bad_samples_stop_the_training(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    rows = [{**row, "caption": row["caption"] if number % 2 else ""} for number, row in enumerate(numbered(10))]
    folder = str(write_jsonl(tmp_path, rows))
    with pytest.raises(DataError, match=r"samples cannot be used and 1 are allowed.*raise dataset\.max_bad_fraction"):
        fit(Recorder(), data(tokenizer, train_path=folder, val_path=folder, max_bad_fraction=0.1), epochs=1)


def test_sources_that_are_open_already_are_used(tokenizer: TextTokenizer) -> None:
    first = data(tokenizer)
    second = DataModule(
        ExperimentConfig(dataset=replace(CONFIG, train_path="gone")),
        Preprocessing(tokenizer, ImageTransform(16)),
        train_source=first.train_source,
        val_source=first.val_source,
    )
    assert [batch.ids for batch in first.train_dataloader()] == [batch.ids for batch in second.train_dataloader()]


def test_a_new_loader_begins_anew_unless_a_state_was_loaded(tokenizer: TextTokenizer) -> None:
    module = data(tokenizer)
    assert module.state_dict() == {}
    batches = iter(module.train_dataloader())
    seen = [next(batches).ids for _ in range(2)]
    state = module.state_dict()
    assert [batch.ids for batch in module.train_dataloader()][:2] == seen
    resumed = data(tokenizer)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    whole = [batch.ids for batch in data(tokenizer).train_dataloader()]
    assert [batch.ids for batch in resumed.train_dataloader()] == whole[2:]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.parametrize(("stop_after", "workers"), [(2, 0), (6, 0), (9, 0), (2, 2)])
def test_lightning_stops_and_resumes_without_losing_or_repeating_a_batch(
    tokenizer: TextTokenizer, tmp_path: Path, stop_after: int, workers: int
) -> None:
    straight = Recorder()
    fit(straight, data(tokenizer, num_workers=workers), epochs=3)
    assert len(straight.seen) == 18
    for epoch in range(3):
        ids = [id for step in straight.seen[6 * epoch : 6 * epoch + 6] for id in step]
        assert sorted(ids) == [f"shapes/train/{i:06d}" for i in range(22)]
    assert straight.seen[0] != straight.seen[6]
    first = Recorder(stop_after, tmp_path / "stop.ckpt")
    fit(first, data(tokenizer, num_workers=workers), epochs=3)
    second = Recorder()
    fit(second, data(tokenizer, num_workers=workers), epochs=3, checkpoint=tmp_path / "stop.ckpt")
    assert first.seen[:stop_after] + second.seen == straight.seen
