"""The list of bad samples: a file that processes share, and a limit."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from impresa.data.bad_samples import BadSampleList
from impresa.errors import DataError


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_bad_sample_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "bad_samples.jsonl"
    bad = BadSampleList(path, "train", 100, 0.5)
    bad.add([])
    assert not path.exists()
    bad.add([("a.png", "broken"), ("ü.png", "leer")])
    bad.add([("a.png", "broken"), ("c.png", "two\nlines")])
    assert rows(path) == [
        {"split": "train", "id": "a.png", "reason": "broken"},
        {"split": "train", "id": "ü.png", "reason": "leer"},
        {"split": "train", "id": "c.png", "reason": "two\nlines"},
    ]
    assert len(bad) == 3


def test_the_run_stops_above_the_limit_and_says_why(tmp_path: Path) -> None:
    bad = BadSampleList(tmp_path / "bad.jsonl", "train", 200, 0.01)
    bad.add([("a", "broken"), ("b", "broken")])
    bad.add([("a", "broken")])
    message = r"train data: 3 of 200 samples .* 2 are allowed, for example c: empty; .*bad\.jsonl; .*max_bad_fraction"
    with pytest.raises(DataError, match=message):
        bad.add([("c", "empty")])
    assert len(rows(tmp_path / "bad.jsonl")) == 3


@pytest.mark.parametrize(("fraction", "allowed"), [(0.0, 0), (0.1, 1), (1.0, 10)])
def test_the_limit_is_a_part_of_the_split(fraction: float, allowed: int) -> None:
    bad = BadSampleList(None, "val", 10, fraction)
    bad.add((str(i), "broken") for i in range(allowed))
    if allowed < 10:
        with pytest.raises(DataError, match="val data"):
            bad.add([("one more", "broken")])


def test_a_resumed_run_goes_on_with_the_list(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    BadSampleList(path, "train", 100, 0.02).add([("a", "x"), ("b", "x")])
    with path.open("a") as file:
        file.write('{"split": "train", "id": "half a li')
    resumed = BadSampleList(path, "train", 100, 0.02)
    resumed.add([("a", "x")])
    assert len(resumed) == 2
    with pytest.raises(DataError):
        resumed.add([("c", "x")])
    assert json.loads(path.read_text().splitlines()[-1])["id"] == "c"


def test_splits_are_counted_apart(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    BadSampleList(path, "train", 100, 0.01).add([("a", "x")])
    BadSampleList(path, "val", 100, 0.01).add([("a", "x")])
    assert [row["split"] for row in rows(path)] == ["train", "val"]


def test_what_another_process_found_counts(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    one, two = (BadSampleList(path, "train", 100, 0.02) for _ in range(2))
    one.add([("a", "x"), ("b", "x")])
    with pytest.raises(DataError, match="3 of 100"):
        two.add([("c", "x")])


def _add_many(path: Path, name: str) -> None:
    bad = BadSampleList(path, "train", 10_000, 1.0)
    for number in range(100):
        bad.add([(f"{name}-{number}", "long reason " * 20)])


def test_processes_write_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        list(pool.map(_add_many, [path] * 3, "abc"))
    assert len({row["id"] for row in rows(path)}) == len(rows(path)) == 300


@pytest.mark.parametrize("line", ["[]", "7", "{}", '{"split": "train"}', "[" * 100_000])
def test_lines_that_are_no_rows_are_passed_over(tmp_path: Path, line: str) -> None:
    (tmp_path / "bad.jsonl").write_text(f'{line}\n{{"split": "train", "id": "a", "reason": "x"}}\n')
    assert len(BadSampleList(tmp_path / "bad.jsonl", "train", 10, 0.5)) == 1
