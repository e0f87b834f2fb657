"""The data of a run: loaders, how processes share them, and a stop in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from impresa.config.dataset import DatasetConfig, ShapesConfig
from impresa.config.experiment import ExperimentConfig
from impresa.data.images import ImageTransform
from impresa.data.loading import BatchLoader
from impresa.data.preprocessing import Preprocessing
from impresa.data.tokenizers import TextTokenizer, train_tokenizer
from impresa.errors import DataError
from impresa.training.parts import TrainingData
from pictures import numbered, write_jsonl

CONFIG = DatasetConfig(
    image_size=16, batch_size=4, num_workers=0, shapes=ShapesConfig(num_train=22, num_val=10, num_test=4)
)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer(["a small red circle", "number 1 2 3"], 300, 40)


def data(tokenizer: TextTokenizer, bad: Path | None = None, seed: int = 0, **changes: Any) -> TrainingData:
    config = ExperimentConfig(seed=seed, dataset=replace(CONFIG, **changes))
    return TrainingData(config, Preprocessing(tokenizer, ImageTransform(16)), bad)


def test_batches_of_training_and_validation(tokenizer: TextTokenizer) -> None:
    module = data(tokenizer, eval_batch_size=6)
    train, val = module.train_loader(), module.val_loader()
    assert (len(train), len(val)) == (6, 2)
    batch = next(iter(train))
    assert batch.image.shape == (4, 3, 16, 16)
    assert batch.image.dtype == torch.float32
    assert batch.input_ids.shape == batch.attention_mask.shape
    assert [id for batch in val for id in batch.ids] == [f"shapes/val/{i:06d}" for i in range(10)]
    assert len(data(tokenizer).val_loader()) == 3


def test_training_augments_and_validation_does_not(tokenizer: TextTokenizer) -> None:
    module = data(tokenizer)
    plain = data(tokenizer, augmentation="none")
    assert not torch.equal(next(iter(module.train_loader())).image, next(iter(plain.train_loader())).image)
    assert torch.equal(next(iter(module.val_loader())).image, next(iter(plain.val_loader())).image)


def test_the_seed_of_the_experiment_decides_the_order(tokenizer: TextTokenizer) -> None:
    orders = [[batch.ids for batch in data(tokenizer, seed=seed).train_loader()] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_processes_share_the_batches(tokenizer: TextTokenizer) -> None:
    seen = []
    for rank in range(2):
        module = data(tokenizer)
        loaders = module.train_loader(rank, 2), module.val_loader(rank, 2)
        seen.append([[batch.ids for batch in loader] for loader in loaders])
    train, val = data(tokenizer, batch_size=8).train_loader(), data(tokenizer).val_loader()
    assert [batch.ids for batch in train] == [a + b for a, b in zip(seen[0][0], seen[1][0], strict=True)]
    assert [batch.ids for batch in val] == seen[0][1] + seen[1][1]  # whole batches of one process


def test_caption_dropout_reaches_the_captions_of_training_alone(tokenizer: TextTokenizer) -> None:
    module, plain = data(tokenizer, caption_dropout=0.5), data(tokenizer)
    words = [
        sum(len(caption.split()) for batch in loader for caption in batch.captions)
        for loader in (
            module.train_loader(),
            plain.train_loader(),
            module.val_loader(),
            plain.val_loader(),
        )
    ]
    assert words[0] < 0.7 * words[1]
    assert words[2] == words[3]


def test_settings_without_workers_are_off(tokenizer: TextTokenizer) -> None:
    loader = data(tokenizer).train_loader()
    assert (loader.prefetch_factor, loader.persistent_workers) == (None, False)


def test_settings_of_workers_reach_the_loader(tokenizer: TextTokenizer) -> None:
    loader = data(tokenizer, num_workers=2, prefetch_factor=3, persistent_workers=False).train_loader()
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (2, 3, False)
    assert data(tokenizer, num_workers=2).train_loader().persistent_workers


@pytest.mark.parametrize("asked", [True, False])
def test_memory_is_pinned_only_for_a_gpu(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    assert not data(tokenizer, pin_memory=asked).train_loader().pin_memory
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert data(tokenizer, pin_memory=asked).train_loader().pin_memory is asked


def test_own_data_are_divided_and_their_bad_samples_listed(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    rows = [*numbered(8), {"image": "8.png", "caption": ""}]
    module = data(
        tokenizer,
        tmp_path / "bad_samples.jsonl",
        train_path=str(write_jsonl(tmp_path / "pictures", rows)),
        val_fraction=0.3,
        max_bad_fraction=0.5,
    )
    seen = [[id for batch in loader for id in batch.ids] for loader in (module.train_loader(), module.val_loader())]
    assert sorted(seen[0] + seen[1]) == [f"{i}.png" for i in range(8)]
    assert '"id": "8.png", "reason": "the caption is empty"' in (tmp_path / "bad_samples.jsonl").read_text()


def test_too_many_bad_samples_stop_the_training(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    rows = [{**row, "caption": row["caption"] if number % 2 else ""} for number, row in enumerate(numbered(10))]
    folder = str(write_jsonl(tmp_path, rows))
    with pytest.raises(DataError, match=r"samples cannot be used and 1 are allowed.*raise dataset\.max_bad_fraction"):
        list(data(tokenizer, train_path=folder, val_path=folder, max_bad_fraction=0.1).train_loader())


def test_sources_that_are_open_already_are_used(tokenizer: TextTokenizer) -> None:
    first = data(tokenizer)
    second = TrainingData(
        ExperimentConfig(dataset=replace(CONFIG, train_path="gone")),
        Preprocessing(tokenizer, ImageTransform(16)),
        sources=(first.train_source, first.val_source),
    )
    assert [batch.ids for batch in first.train_loader()] == [batch.ids for batch in second.train_loader()]


def test_a_new_loader_begins_anew_unless_it_has_a_position(tokenizer: TextTokenizer) -> None:
    module = data(tokenizer)
    loader = module.train_loader()
    batches = iter(loader)
    seen = [next(batches).ids for _ in range(2)]
    position = loader.position()
    assert (position["epoch"], position["next_batch"]) == (0, 2)
    assert [batch.ids for batch in module.train_loader()][:2] == seen
    resumed = data(tokenizer).train_loader(position=position)
    assert resumed.position() == position
    whole = [batch.ids for batch in data(tokenizer).train_loader()]
    assert [batch.ids for batch in resumed] == whole[2:]


def batches_of(loader: BatchLoader[Any], epochs: int) -> Iterator[list[str]]:
    for _ in range(epochs):
        yield from (batch.ids for batch in loader)


@pytest.mark.parametrize(("stop_after", "workers"), [(2, 0), (6, 0), (9, 0), (2, 2)])
def test_a_stop_loses_and_repeats_no_batch(tokenizer: TextTokenizer, stop_after: int, workers: int) -> None:
    straight = list(batches_of(data(tokenizer, num_workers=workers).train_loader(), 3))
    assert len(straight) == 18
    for epoch in range(3):
        ids = [id for step in straight[6 * epoch : 6 * epoch + 6] for id in step]
        assert sorted(ids) == [f"shapes/train/{i:06d}" for i in range(22)]
    assert straight[0] != straight[6]
    loader = data(tokenizer, num_workers=workers).train_loader()
    first = list(islice(batches_of(loader, 3), stop_after))
    rest = data(tokenizer, num_workers=workers).train_loader(position=loader.position())
    assert first + list(batches_of(rest, 3 - stop_after // 6)) == straight
