"""Rows on disk: what one process adds another reads, and nothing that a killed one leaves is ever read."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from impresa.data.feature_store import FeatureStore, bytes_per_row, writing
from impresa.errors import DataError

LENGTH = 5


def digest(number: int) -> bytes:
    return number.to_bytes(16, "little")


def rows(*numbers: int) -> np.ndarray:
    return np.array([np.arange(LENGTH) + number for number in numbers], np.float16)


def add(folder: Path, *numbers: int, name: str = "0") -> None:
    with writing(folder, name, LENGTH) as writer:
        writer.add([digest(number) for number in numbers], [-number for number in numbers], rows(*numbers))


def read(folder: Path) -> dict[int, tuple[list[float], int]]:
    store = FeatureStore(folder, LENGTH)
    found = {int.from_bytes(key, "little"): store[place] for key, place in store.places().items()}
    return {number: (kept.features.tolist(), kept.key) for number, kept in found.items()}


def expected(*numbers: int) -> dict[int, tuple[list[float], int]]:
    return {number: (rows(number)[0].tolist(), -number) for number in numbers}


def test_what_is_added_is_read(tmp_path: Path) -> None:
    assert read(tmp_path / "missing") == {}
    add(tmp_path, 1, 2)
    add(tmp_path, 3)
    add(tmp_path, 4, 5, name="1")
    assert read(tmp_path) == expected(1, 2, 3, 4, 5)
    assert FeatureStore(tmp_path, LENGTH).num_bytes == 5 * bytes_per_row(LENGTH)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 5 * bytes_per_row(LENGTH)


def test_a_store_goes_to_another_process_and_reads_while_another_writes(tmp_path: Path) -> None:
    add(tmp_path, 1, 2)
    store = pickle.loads(pickle.dumps(FeatureStore(tmp_path, LENGTH)))
    add(tmp_path, 3)
    assert [store[place].features[0] for place in range(len(store))] == [1, 2]


@pytest.mark.parametrize("suffix", ["rows", "keys"])
def test_the_rest_that_a_killed_writer_leaves_is_written_over(tmp_path: Path, suffix: str) -> None:
    add(tmp_path, 1, 2)
    with (tmp_path / f"0.{suffix}").open("ab") as file:
        file.write(b"\1" * 7)
    assert read(tmp_path) == expected(1, 2)
    add(tmp_path, 3)
    assert read(tmp_path) == expected(1, 2, 3)


@pytest.mark.parametrize("suffix", ["rows", "keys"])
def test_of_a_file_that_was_cut_the_whole_rows_are_read(tmp_path: Path, suffix: str) -> None:
    add(tmp_path, 1, 2, 3)
    path = tmp_path / f"0.{suffix}"
    os.truncate(path, path.stat().st_size * 2 // 3 - 1)
    assert read(tmp_path) == expected(1)
    add(tmp_path, 4)
    assert read(tmp_path) == expected(1, 4)


def test_a_damaged_row_is_named_and_not_read(tmp_path: Path) -> None:
    add(tmp_path, 1, 2)
    with (tmp_path / "0.rows").open("r+b") as file:
        file.seek(LENGTH * 2 + 1)
        file.write(b"\xff")
    store = FeatureStore(tmp_path, LENGTH)
    assert store[0].features[0] == 1
    with pytest.raises(ValueError, match=r"damaged; remove .*0\.\*"):
        store[1]


def test_numbers_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    with writing(tmp_path, "0", LENGTH) as writer, pytest.raises(DataError, match="half precision cannot hold"):
        writer.add([digest(1)], [1], np.full((1, LENGTH), np.inf, np.float16))
    assert read(tmp_path) == {}
