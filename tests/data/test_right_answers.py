"""Lists of right answers, and answers that are numbers or switches, in every kind of table."""

from __future__ import annotations

import csv
import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from impresa.config.dataset import DatasetConfig
from impresa.data.dialogue import Dialogue, Turn, ask_for_captions, dialogues_of_captions, texts_of
from impresa.data.images import ImageTransform
from impresa.data.loading import TrainingView
from impresa.data.sample import Sample
from impresa.data.sources import Source, open_path
from impresa.data.sources.base import BadSample, Reading
from pictures import png

TEN = ["yes"] * 7 + ["no"] * 2 + ["maybe"]


def opened(path: Path) -> Source:
    return open_path(DatasetConfig(), str(path), Reading(dialogues=True))


def turns(source: Source, index: int = 0) -> tuple[Turn, ...]:
    return tuple(turn for dialogue in source[index].dialogues for turn in dialogue.turns)


def as_json_lines(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "1.png").write_bytes(png(1))
    text = "\n".join(json.dumps({"image": "1.png", **row}) for row in rows)
    (folder / "metadata.jsonl").write_text(text)
    return folder


def as_parquet(folder: Path, *rows: dict[str, Any]) -> Path:
    pq.write_table(pa.Table.from_pylist([{"image": png(1), **row} for row in rows]), folder / "a.parquet")
    return folder / "a.parquet"


def as_csv(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "1.png").write_bytes(png(1))
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", *rows[0]])
        writer.writeheader()
        writer.writerows({"image": "1.png", **row} for row in rows)
    return folder


WRITERS = pytest.mark.parametrize("write", [as_json_lines, as_parquet, as_csv])


@WRITERS
def test_a_list_beside_one_question_holds_right_answers(tmp_path: Path, write: Any) -> None:
    (turn,) = turns(opened(write(tmp_path, {"question": "is it?", "answer": TEN})))
    assert turn == Turn("is it?", "yes", tuple(TEN))


@WRITERS
def test_lists_in_a_list_belong_to_the_questions(tmp_path: Path, write: Any) -> None:
    row = {"question": ["is it?", "how many?"], "answer": [["no", "yes", "yes"], ["two"]]}
    found = turns(opened(write(tmp_path, row)))
    assert found == (Turn("is it?", "yes", ("no", "yes", "yes")), Turn("how many?", "two", ("two",)))


@pytest.mark.parametrize("write", [as_json_lines, as_parquet])
def test_right_answers_may_be_objects_as_vqa_has_them(tmp_path: Path, write: Any) -> None:
    given = [{"answer": text, "answer_id": number} for number, text in enumerate(TEN)]
    (turn,) = turns(opened(write(tmp_path, {"question": "is it?", "answer": given})))
    assert turn.references == tuple(TEN)


def test_single_answers_stay_single(tmp_path: Path) -> None:
    found = turns(opened(as_json_lines(tmp_path, {"question": ["a?", "b?"], "answer": ["1", "2"]})))
    assert found == (Turn("a?", "1"), Turn("b?", "2"))


def test_empty_ones_are_left_out_and_none_is_bad(tmp_path: Path) -> None:
    rows = [{"question": "a?", "answer": answer} for answer in (["", None, " two "], [], ["", None])]
    source = opened(as_json_lines(tmp_path, *rows))
    assert turns(source) == (Turn("a?", "two", ("two",)),)
    for index in (1, 2):
        with pytest.raises(BadSample, match="the answer is empty"):
            source[index]


def test_a_text_of_numbers_in_brackets_is_one_answer(tmp_path: Path) -> None:
    rows = [{"question": "where?", "answer": answer} for answer in ("[12, 30]", "['a', 'b']", [12, 30])]
    source = opened(as_json_lines(tmp_path, *rows))
    assert turns(source, 0) == (Turn("where?", "[12, 30]"),)
    assert turns(source, 1)[0].references == ("a", "b")
    assert turns(source, 2)[0].references == ("12", "30")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([3, 0, -7], ["3", "0", "-7"]),
        ([2.0, None, 0.0], ["2", None, "0"]),  # an integer column with gaps
        ([2.5, 0.1, 1e-7], ["2.5", "0.1", "0.0000001"]),
        ([True, False, None], ["yes", "no", None]),
        (["true", "2.50", "3.0 m"], ["true", "2.50", "3.0 m"]),  # text stays
    ],
)
@WRITERS
def test_numbers_and_switches(tmp_path: Path, write: Any, answers: list[Any], expected: list[str | None]) -> None:
    source = opened(write(tmp_path, *({"question": "q?", "answer": answer} for answer in answers)))
    for index, text in enumerate(expected):
        if text is not None:
            answer = turns(source, index)[0].answer
            assert answer == text or (write is as_csv and float(answer) == float(text))  # csv has what was written
        else:
            with pytest.raises(BadSample, match="the answer is empty"):
                source[index]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([0.1, 3.0], pa.float32()), ["0.1", "3"]),
        (pa.array([0.5, 3.0], pa.float64()), ["0.5", "3"]),
        (pa.array([Decimal("1.50"), Decimal("200.00")]), ["1.5", "200"]),
        (pa.array([[3, 3, 2], [1]]), ["3", "1"]),
    ],
)
def test_columns_of_parquet(tmp_path: Path, column: pa.Array, expected: list[str]) -> None:
    pq.write_table(
        pa.table({"image": [png(1), png(2)], "question": ["q?", "q?"], "answer": column}), tmp_path / "a.parquet"
    )
    source = opened(tmp_path / "a.parquet")
    assert [turns(source, index)[0].answer for index in range(2)] == expected


@pytest.mark.parametrize(
    "said", [["how many?", 0], [{"role": "user", "content": "how many?"}, {"from": "gpt", "value": 0}]]
)
def test_numbers_in_dialogues(tmp_path: Path, said: list[Any]) -> None:
    assert turns(opened(as_json_lines(tmp_path, {"messages": said}))) == (Turn("how many?", "0"),)


def test_an_answer_that_is_neither_is_bad(tmp_path: Path) -> None:
    source = opened(as_json_lines(tmp_path, {"question": "q?", "answer": {"a": 1}}))
    with pytest.raises(BadSample, match="the answer is no text but"):
        source[0]


def test_training_draws_one_of_the_right_answers_evenly_by_epoch() -> None:
    sample = Sample("a", dialogues=(Dialogue((Turn("is it?", "yes", tuple(TEN)), Turn("why?", "so"))),))
    view = TrainingView(seed=3, augmentation="none", image=ImageTransform(16))
    drawn = [view(sample, (epoch, 5)).dialogues[0].turns for epoch in range(300)]
    assert all(later == Turn("why?", "so") for _, later in drawn)
    assert not any(turn.references for turn, _ in drawn)
    counts = Counter(turn.answer for turn, _ in drawn)
    assert np.allclose([counts[text] / 300 for text in ("yes", "no", "maybe")], [0.7, 0.2, 0.1], atol=0.08)
    assert drawn == [view(sample, (epoch, 5)).dialogues[0].turns for epoch in range(300)]
    other = [view(sample, (epoch, 6)).dialogues[0].turns for epoch in range(300)]
    assert drawn != other


def test_a_tokenizer_sees_all_right_answers() -> None:
    assert list(texts_of([Dialogue((Turn("is it?", "yes", ("yes", "no")),))])) == ["is it?", "yes", "no"]


def test_what_teaches_captions() -> None:
    assert ask_for_captions(dialogues_of_captions(["a dog"]))
    assert ask_for_captions([Dialogue((Turn("Describe this picture.", "a dog"),))])
    assert ask_for_captions([Dialogue((Turn("what?", "a dog"),), kind="Captioning")])
    assert not ask_for_captions([Dialogue((Turn("how many?", "two"),), kind="count")])
