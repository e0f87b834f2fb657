"""Groups: of samples that are variants of one thing an epoch draws one, and a division keeps them together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from impresa.config.dataset import DatasetConfig
from impresa.data.sampler import BatchSampler, one_of_each
from impresa.data.sources import open_train_and_val
from impresa.data.sources.base import Blocks
from impresa.data.sources.groups import groups_of, numbered
from impresa.training.parts import build_parts
from pictures import png
from tiny_run import tiny_experiment

GROUPS = np.array([0, 0, 0, 0, 1, 2, 2, 3])


def _epoch(sampler: BatchSampler) -> list[int]:
    drawn = []
    sampler.begin_epoch()
    for batch in sampler:
        drawn += [index for _, index in batch]
        sampler.advance()
    return drawn


def test_an_epoch_draws_one_sample_of_each_group_and_another_one_each_time() -> None:
    sampler = BatchSampler(num_samples=8, batch_size=2, seed=0, groups=GROUPS)
    assert len(sampler) == 2
    epochs = [_epoch(sampler) for _ in range(40)]
    assert all(sorted(GROUPS[epoch]) == [0, 1, 2, 3] for epoch in epochs)
    assert {index for epoch in epochs for index in epoch} == set(range(8))


def test_each_sample_of_a_group_has_the_same_chance() -> None:
    generator = np.random.default_rng(0)
    counts = sum(one_of_each(GROUPS, generator).astype(int) for _ in range(4000))
    np.testing.assert_allclose(counts / 4000, [0.25] * 4 + [1] + [0.5] * 2 + [1], atol=0.03)


def test_ranks_share_what_one_process_draws() -> None:
    whole = next(iter(BatchSampler(num_samples=8, batch_size=4, seed=3, groups=GROUPS)))
    parts = [
        next(iter(BatchSampler(num_samples=8, batch_size=2, seed=3, groups=GROUPS, rank=rank, world_size=2)))
        for rank in (0, 1)
    ]
    assert parts[0] + parts[1] == whole


def test_samples_of_a_block_stay_together() -> None:
    groups = np.arange(60) // 2
    sampler = BatchSampler(num_samples=60, batch_size=60, seed=0, blocks=Blocks((20, 20, 20), 1), groups=groups)
    assert len({tuple(np.array(_epoch(sampler)) // 20)}) == 1
    blocks = np.array(_epoch(sampler)) // 20
    assert np.count_nonzero(np.diff(blocks)) == 2


def test_a_position_continues_among_the_same_groups() -> None:
    sampler = BatchSampler(num_samples=8, batch_size=2, seed=0, groups=GROUPS)
    rest = list(sampler)[1:]
    sampler.advance()
    resumed = BatchSampler(num_samples=8, batch_size=2, seed=0, groups=GROUPS)
    resumed.load_state_dict(sampler.state_dict())
    assert list(resumed) == rest


def test_rows_without_a_group_are_groups_of_their_own() -> None:
    assert numbered(["a", None, "a", None, "b"]).tolist() == [0, 1, 0, 2, 3]


def _table(path: Path, groups: list[object]) -> DatasetConfig:
    images = [png(number) for number in range(len(groups))]
    captions = [f"thing {number}" for number in range(len(groups))]
    pq.write_table(pa.table({"image": images, "caption": captions, "concept": groups}), path)
    return DatasetConfig(train_path=str(path), val_fraction=0.3, group_column="concept")


def test_a_division_keeps_a_group_on_one_side(tmp_path: Path) -> None:
    config = _table(tmp_path / "data.parquet", [f"{number // 5}" for number in range(60)])
    train, val = open_train_and_val(config)
    codes = groups_of(train, "concept")
    assert codes is not None
    assert len(train) % 5 == len(val) % 5 == 0
    assert np.bincount(codes).tolist() == [5] * (len(train) // 5)


def test_numbers_and_empty_cells_of_a_column(tmp_path: Path) -> None:
    config = _table(tmp_path / "data.parquet", [1, 1, None, None, 2, 2, 2, 2, 2, 2])
    train, val = open_train_and_val(config)
    codes = groups_of(train, "concept")
    assert codes is not None
    assert len(train) + len(val) == 10
    assert groups_of(train, None) is None


def test_a_missing_column_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train, _ = open_train_and_val(_table(tmp_path / "data.parquet", ["a", "b", "c", "d"]))
    assert groups_of(train, "kind of thing") is None
    assert "dataset.group_column: the training data have no 'kind of thing'" in caplog.text


def test_a_training_run_draws_by_groups(tmp_path: Path) -> None:
    dataset = _table(tmp_path / "data.parquet", [f"{number // 5}" for number in range(60)])
    settings = (f"dataset.train_path={dataset.train_path}", f"dataset.val_path={dataset.train_path}")
    settings += ("dataset.batch_size=4", "dataset.num_workers=0")
    grouped, plain = (
        build_parts(tiny_experiment(*settings, *more), None).data for more in (("dataset.group_column=concept",), ())
    )
    assert (grouped.num_train_batches(), plain.num_train_batches()) == (3, 15)
    ids = [name for batch in grouped.train_loader() for name in batch.ids]
    assert len({int(name.rpartition(":")[2]) // 5 for name in ids}) == len(ids) == 12
