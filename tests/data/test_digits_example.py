"""The handwritten digits as an example writes them: read back with captions, or with questions."""

from __future__ import annotations

import runpy
from collections import Counter
from pathlib import Path

import pytest

from impresa.config.dataset import DatasetConfig
from impresa.data.sources import Reading, open_path

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits.py"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("digits")
    runpy.run_path(str(EXAMPLE))["write"](folder)
    return folder


@pytest.mark.parametrize(("split", "count"), [("train", 1257), ("val", 180), ("test", 360)])
def test_both_layouts_hold_the_same(digits: Path, split: str, count: int) -> None:
    table, folder = (
        open_path(DatasetConfig(), str(digits / place), Reading(dialogues=True))
        for place in (f"{split}.parquet", f"folders/{split}")
    )
    assert len(table) == len(folder) == count
    assert list(table.dialogues()) == list(folder.dialogues())
    assert list(table.captions()) == list(folder.captions())
    assert table[count - 1].image.tobytes() == folder[count - 1].image.tobytes()


def test_answers_follow_from_the_digit(digits: Path) -> None:
    source = open_path(DatasetConfig(), str(digits / "test.parquet"), Reading(dialogues=True))
    said = {}
    for index in range(100):
        sample = source[index]
        said[sample.label] = {dialogue.kind: dialogue.turns[0].answer for dialogue in sample.dialogues}
    assert len(said) == 10
    assert said["zero"] == {"digit": "zero", "parity": "even", "size": "no", "next": "one"}
    assert said["five"] == {"digit": "five", "parity": "odd", "size": "no", "next": "six"}
    assert said["six"] == {"digit": "six", "parity": "even", "size": "yes", "next": "seven"}
    assert said["nine"] == {"digit": "nine", "parity": "odd", "size": "yes", "next": "ten"}


def test_the_most_frequent_answers_are_right_for_a_third(digits: Path) -> None:
    asked = list(open_path(DatasetConfig(), str(digits / "test.parquet"), Reading(dialogues=True)).dialogues())
    answers = {kind: Counter(d.turns[0].answer for d in asked if d.kind == kind) for kind in {d.kind for d in asked}}
    shares = [counts.most_common(1)[0][1] / counts.total() for counts in answers.values()]
    assert len(shares) == 4
    assert 0.32 < sum(shares) / 4 < 0.34
