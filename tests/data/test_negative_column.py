"""Hard negatives from files: read, drawn by epoch and sample, never in validation, and part of what is trained."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from impresa.config.dataset import DatasetConfig
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.data.images import ImageTransform
from impresa.data.loading import TrainingView
from impresa.data.preprocessing import Preprocessing, prepare_tokenizer
from impresa.data.sample import text_key
from impresa.data.sources import open_source, reading_of
from impresa.errors import DataError
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.build import build_alignment
from impresa.training.parts import TrainingData
from pictures import png, write_jsonl

TOWER = EncoderConfig(dim=8, depth=1, num_heads=2, embed_dim=8, patch_size=8)
ROWS: list[dict[str, Any]] = [
    {"caption": "a red ball", "wrong": ["a blue ball", "A  Red ball", "a red box"]},
    {"caption": ["a dog", "a puppy"], "wrong": "a cat"},
    {"caption": "a house", "wrong": None},
    {"caption": "a blue ball", "wrong": ["", "a blue ball"]},
]
READ = [("a blue ball", "a red box"), ("a cat",), (), ()]


def write(folder: Path, kind: str) -> Path:
    """The rows with their images as a table, and its path."""
    if kind == "parquet":
        columns: dict[str, Any] = {name: [row[name] for row in ROWS] for name in ("caption", "wrong")}
        lists = {name: [[x] if isinstance(x, str) else x for x in values] for name, values in columns.items()}
        pq.write_table(pa.table({"image": [png(n) for n in range(4)], **lists}), folder / "a.parquet")
        return folder / "a.parquet"
    for number in range(4):
        (folder / f"{number}.png").write_bytes(png(number))
    rows = [{"image": f"{number}.png", **row} for number, row in enumerate(ROWS)]
    if kind == "jsonl":
        write_jsonl(folder, rows)
        return folder
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["image", "caption", "wrong"])
        writer.writeheader()
        writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    return folder


def experiment(path: Path, **dataset: Any) -> ExperimentConfig:
    settings: dict[str, Any] = {"train_path": str(path), "val_path": str(path), "image_size": 8, "num_workers": 0}
    settings |= {"negative_column": "wrong", "batch_size": 4, "augmentation": "none"}
    data = DatasetConfig(**(settings | dataset))
    text = replace(TOWER, backbone="transformer", vocab_size=300)
    return ExperimentConfig(dataset=data, vision_encoder=TOWER, text_encoder=text)


def training_data(config: ExperimentConfig) -> TrainingData:
    captions = open_source(config.dataset, "train", reading_of(config)).captions()
    return TrainingData(config, Preprocessing(prepare_tokenizer(config, captions), ImageTransform(8)))


def batches(config: ExperimentConfig, epochs: int) -> list[Batch]:
    loader = training_data(config).train_loader()
    return [batch for _ in range(epochs) for batch in loader]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_every_kind_of_table_has_them_and_those_that_are_captions_are_dropped(tmp_path: Path, kind: str) -> None:
    config = experiment(write(tmp_path, kind))
    source = open_source(config.dataset, "train", reading_of(config))
    assert [source[i].negatives for i in range(4)] == READ
    assert all(source[i].captions for i in range(4))
    for other in (replace(config, dataset=replace(config.dataset, negative_column=None)), config):
        split = "val" if other is config else "train"
        source = open_source(other.dataset, split, reading_of(other))  # type: ignore[arg-type]
        assert [source[i].negatives for i in range(4)] == [()] * 4


def test_one_is_drawn_for_each_epoch_by_seed_epoch_and_sample(tmp_path: Path) -> None:
    config = experiment(write(tmp_path, "jsonl"))
    sample = open_source(config.dataset, "train", reading_of(config))[0]
    view = TrainingView(0, "none", 8, identifies=True)
    drawn = [view(sample, (epoch, 0)) for epoch in range(40)]
    assert {one.negatives for one in drawn} == {("a blue ball",), ("a red box",)}
    assert [one.negatives for one in drawn] == [view(sample, (epoch, 0)).negatives for epoch in range(40)]
    assert [one.negatives for one in drawn] != [view(sample, (epoch, 1)).negatives for epoch in range(40)]
    assert all(one.negative_key == text_key(one.negatives[0]) for one in drawn)
    dropped = TrainingView(0, "none", 8, caption_dropout=0.9)(sample, (0, 0))
    assert len(dropped.negatives[0].split()) < 3


def test_nothing_else_that_is_drawn_depends_on_them(tmp_path: Path) -> None:
    config = experiment(write(tmp_path, "jsonl"), augmentation="strong", caption_dropout=0.3)
    without = replace(config, dataset=replace(config.dataset, negative_column=None))
    for one, other in zip(batches(config, 2), batches(without, 2), strict=True):
        assert one.captions == other.captions
        assert one.image is not None
        assert torch.equal(one.image, other.image)  # type: ignore[arg-type]


def test_they_are_part_of_training_batches_and_of_their_loss_alone(tmp_path: Path) -> None:
    config = experiment(write(tmp_path, "parquet"))
    data = training_data(config)
    (batch,) = data.train_loader()
    (validation,) = data.val_loader()
    assert batch.negative_ids.shape == (2, batch.input_ids.shape[1])
    assert set(batch.negative_keys) <= {text_key(text) for texts in READ for text in texts}
    assert len(validation.negative_ids) == 0
    torch.manual_seed(0)
    model = build_alignment(config, 300, 299)
    plain = replace(batch, negative_ids=None, negative_mask=None, negative_keys=[])
    told, without = model(batch), model(plain)
    torch.testing.assert_close(told.embeddings["text"], without.embeddings["text"])
    assert told.loss > without.loss + 0.01
    assert model.embed(batch).keys() == {"image", "text"}


def test_a_divided_set_trains_with_them_and_validates_without(tmp_path: Path) -> None:
    config = experiment(write(tmp_path, "jsonl"), val_path=None, val_fraction=0.5)
    data = training_data(config)
    assert sum(len(batch.negative_ids) for batch in data.train_loader()) > 0
    assert sum(len(batch.negative_ids) for batch in data.val_loader()) == 0


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    for kind in ("jsonl", "parquet"):
        folder = tmp_path / kind
        folder.mkdir()
        config = experiment(write(folder, kind), negative_column="worng")
        with pytest.raises(DataError, match=r"no column 'worng' for hard negatives .* set dataset.negative_column"):
            open_source(config.dataset, "train", reading_of(config))


def test_files_beside_images_have_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "a.txt").write_text("a dog")
    config = experiment(tmp_path)
    with pytest.raises(DataError, match=r"no table is here, .* or leave dataset.negative_column out"):
        open_source(config.dataset, "train", reading_of(config))


def test_what_is_no_text_is_a_bad_sample(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(0))
    write_jsonl(tmp_path, [{"image": "0.png", "caption": "a dog", "wrong": {"a": 1}}])
    config = experiment(tmp_path)
    with pytest.raises(DataError, match="the negative caption is no text"):
        open_source(config.dataset, "train", reading_of(config))[0]
