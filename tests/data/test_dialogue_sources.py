"""Questions and answers from folders and parquet files, in every layout; and that nothing is read unasked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from impresa.config.dataset import DatasetConfig
from impresa.data.dialogue import CAPTION_PROMPTS, Dialogue, Turn, ask, dialogues_of_captions
from impresa.data.sources import BadSample, Reading, Source, open_path, open_source, open_train_and_val
from impresa.errors import DataError
from pictures import numbered, png, write_jsonl
from sounds_on_disk import write_wavs

TALK = Dialogue((Turn("what is it?", "a dog"), Turn("is it big?", "no")))
FIRST = Dialogue(TALK.turns[:1])
MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "<image>\nwhat is it?"},
    {"role": "assistant", "content": "a dog"},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is it big?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": " no "}]},
]
PLAIN = [
    {"role": "user", "content": "what is it?"},
    {"role": "assistant", "content": "a dog"},
    {"role": "user", "content": "is it big?"},
    {"role": "assistant", "content": "no"},
]
LLAVA = [
    {"from": "human", "value": "<image>\nwhat is it?"},
    {"from": "gpt", "value": "a dog"},
    {"from": "human", "value": "is it big?"},
    {"from": "gpt", "value": "no"},
]
PIXMO = "[USER] what is it? [ASSISTANT] a dog [USER] is it big? [ASSISTANT]"
LAYOUTS: list[tuple[dict[str, Any], tuple[Dialogue, ...]]] = [
    ({"question": " one? ", "answer": "1\n"}, (ask("one?", "1"),)),
    ({"question": "one?", "answer": "1", "kind": "count"}, (ask("one?", "1", "count"),)),
    ({"question": ["one?", "two?"], "answer": ["1", "2"]}, (ask("one?", "1"), ask("two?", "2"))),
    (
        {"question": ["one?", "two?"], "answer": ["1", "2"], "kind": ["a", "b"]},
        (ask("one?", "1", "a"), ask("two?", "2", "b")),
    ),
    ({"question": PIXMO, "answer": "no"}, (TALK,)),
    ({"question": PIXMO.removesuffix("[ASSISTANT]"), "answer": "no"}, (TALK,)),
    ({"question": "what is [USER]?", "answer": "a tag"}, (ask("what is [USER]?", "a tag"),)),
    ({"messages": [text for turn in TALK.turns for text in (turn.question, turn.answer)]}, (TALK,)),
    ({"messages": MESSAGES}, (TALK,)),
    ({"messages": MESSAGES, "question": "one?", "answer": "1", "kind": "chat"}, (Dialogue(TALK.turns, "chat"),)),
    ({"messages": [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": "a dog"}]}, (FIRST,)),
    ({"conversations": LLAVA, "id": "7"}, (TALK,)),
    ({"prompt": "one?", "completion": " 1"}, (ask("one?", "1"),)),
    (
        {"prompt": ["one?", "two?"], "completion": ["1", "2"], "kind": "a"},
        (ask("one?", "1", "a"), ask("two?", "2", "a")),
    ),
    ({"prompt": MESSAGES[1:2], "completion": MESSAGES[2:3]}, (FIRST,)),
    ({"prompt": PLAIN[:3], "completion": PLAIN[3:]}, (TALK,)),
    ({"prompt": "what is it?", "completion": MESSAGES[2:3]}, (FIRST,)),
    ({"prompt": PLAIN[:1], "completion": "a dog"}, (FIRST,)),
    ({"prompt": "a dog, oil on canvas", "question": "one?", "answer": "1"}, (ask("one?", "1"),)),
    ({"messages": ["what is it?", "a dog", "is it big?"]}, (FIRST,)),
    ({"conversations": [{"from": "gpt", "value": "hello"}, *LLAVA]}, (TALK,)),
    ({"conversations": LLAVA[:3]}, (FIRST,)),
    ({"question": f"[ASSISTANT] hello {PIXMO}", "answer": "no"}, (TALK,)),
    ({"question": None, "answer": "", "caption": "a dog"}, dialogues_of_captions(["a dog"])),
    ({"question": "one?", "answer": "1", "caption": "a dog"}, (ask("one?", "1"),)),
    ({"caption": ["a dog", "an animal"]}, dialogues_of_captions(["a dog", "an animal"])),
]
TEXT_ALONE = "the row is text alone, without an image; dataset.skip_unsupported_rows=true leaves such rows out"
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"question": "one?", "answer": None}, "the answer is empty"),
    ({"question": " ", "answer": "1"}, "the question is empty"),
    ({"question": "<image>", "answer": "1"}, "the question is empty"),
    ({"question": ["one?", "two?"], "answer": ["1"]}, "there are 2 questions and 1 answers"),
    ({"question": ["one?"], "answer": ["1"], "kind": ["a", "b"]}, "there are 1 questions and 2 kinds of question"),
    ({"question": ["one?", "two?"], "answer": ["1", ""]}, "the answer is empty"),
    ({"question": 7, "answer": "1"}, "the question is no text but 7"),
    ({"question": "\ud800?", "answer": "1"}, "the question is not UTF-8 text"),
    ({"question": "[USER] one? [ASSISTANT] 1", "answer": "1"}, "the last answer stands in the question and in the"),
    ({"question": "[USER] one? [USER] two? [ASSISTANT]", "answer": "1"}, "do not speak in turn"),
    ({"question": None, "answer": None}, "there is neither a question nor a caption"),
    ({"messages": [LLAVA[0], *LLAVA]}, "do not speak in turn, a question first and an answer last (user, user, ass"),
    ({"messages": LLAVA[:1]}, "do not speak in turn, a question first and an answer last (user)"),
    ({"messages": LLAVA[1:2]}, "do not speak in turn, a question first and an answer last (assistant)"),
    ({"messages": [LLAVA[1], *LLAVA[1:]]}, "do not speak in turn"),
    ({"prompt": "one?", "completion": ""}, "the answer is empty"),
    ({"prompt": [{"role": "user", "content": "one?"}], "completion": {"a": 7}}, "completion is no list but {'a': 7}"),
    (
        {"messages": [{"role": "system", "content": "x"}]},
        "do not speak in turn, a question first and an answer last (n",
    ),
    ({"messages": "hello"}, "messages is no list but 'hello'"),
    ({"messages": [[7]]}, "messages holds [7], which is neither text nor an object of role and content"),
    ({"conversations": [{"from": "bot", "value": "x"}]}, "conversations has the role 'bot'"),
    ({"messages": [{"role": "user", "content": "one?"}, {"role": "assistant"}]}, "the answer is empty"),
    ({"messages": [{"role": ["user"], "content": "one?"}]}, "messages has the role ['user']"),
    ({"messages": [{"role": {"a": 1}, "content": "one?"}]}, "messages has the role {'a': 1}"),
    ({"messages": [{"role": "user", "content": [{"text": 5}]}]}, "messages has a part whose text is no text"),
    ({"conversations": [{"from": "human", "value": {"a": 1}}, {"from": "gpt", "value": "x"}]}, "is no text but {'a'"),
    ({"question": "one?", "answer": "1", "kind": "\ud800"}, "the kind of question is not UTF-8 text"),
]


def dialogues(source: Source) -> list[tuple[Dialogue, ...] | str]:
    """What each sample is asked, or why it is bad."""
    found: list[tuple[Dialogue, ...] | str] = []
    for index in range(len(source)):
        try:
            found.append(source[index].dialogues)
        except BadSample as bad:
            found.append(bad.reason)
    return found


def open_asking(path: Path, **columns: str) -> Source:
    return open_path(DatasetConfig(**columns), str(path), Reading(dialogues=True))


def parquet(folder: Path, rows: list[dict[str, Any]], name: str = "a.parquet") -> Path:
    table = pa.Table.from_pylist([{"image": png(number), **row} for number, row in enumerate(rows)])
    pq.write_table(table, folder / name)
    return folder / name


@pytest.mark.parametrize(("row", "expected"), LAYOUTS)
def test_a_folder_reads_every_layout(tmp_path: Path, row: dict[str, Any], expected: tuple[Dialogue, ...]) -> None:
    source = open_asking(write_jsonl(tmp_path, [{"image": "1.png", **row}]))
    assert dialogues(source) == [expected]
    assert list(source.dialogues()) == list(expected)
    assert source[0].image.getpixel((0, 0)) == (1, 0, 7)


@pytest.mark.parametrize(("row", "expected"), [layout for layout in LAYOUTS if MESSAGES not in layout[0].values()])
def test_parquet_reads_every_layout(tmp_path: Path, row: dict[str, Any], expected: tuple[Dialogue, ...]) -> None:
    source = open_asking(parquet(tmp_path, [row]))
    assert dialogues(source) == [expected]
    assert list(source.dialogues()) == list(expected)


@pytest.mark.parametrize(("row", "fault"), FAULTS)
def test_a_row_that_cannot_be_asked_is_bad_with_its_reason(tmp_path: Path, row: dict[str, Any], fault: str) -> None:
    rows = [{"image": "1.png", "question": "one?", "answer": "1"}, {"image": "2.png", **row}]
    good, bad = dialogues(open_asking(write_jsonl(tmp_path, rows)))
    assert good == (ask("one?", "1"),)
    assert fault in bad


def test_the_rows_that_the_docs_show_are_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    section = text.split("## Questions and answers")[1].split("\n## ")[0]
    rows = [line.replace("1.jpg", "1.png") for line in section.splitlines() if line.startswith("{")]
    found = dialogues(open_asking(write_jsonl(tmp_path, rows)))
    assert [sum(len(dialogue.turns) for dialogue in asked) for asked in found] == [1, 2, 1, 1, 1, 1, 2, 1, 2, 2, 1]


def test_bad_rows_of_parquet_are_named_too(tmp_path: Path) -> None:
    rows = [{"question": q, "answer": a} for q, a in (("one?", "1"), ("two?", None), (None, None))]
    source = open_asking(parquet(tmp_path, rows))
    assert dialogues(source) == [
        (ask("one?", "1"),),
        "the answer is empty",
        "there is neither a question nor a caption",
    ]
    assert list(source.dialogues()) == [ask("one?", "1")]


def test_columns_are_those_of_the_config(tmp_path: Path) -> None:
    row = {"q": "one?", "a": "1", "type": "count", "question": "no", "answer": "no", "kind": "no"}
    columns = {"question_column": "q", "answer_column": "a", "kind_column": "type"}
    assert dialogues(open_asking(write_jsonl(tmp_path / "folder", [{"image": "1.png", **row}]), **columns)) == [
        (ask("one?", "1", "count"),)
    ]
    assert dialogues(open_asking(parquet(tmp_path, [row]), **columns)) == [(ask("one?", "1", "count"),)]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"question": "one?"}, r"no column 'answer' for the answer .*set dataset\.answer_column"),
        ({"answer": "1", "caption": "a dog"}, r"no column 'question' for the question .*set dataset\.question_column"),
        ({"text": "a dog"}, r"no column with questions and answers, nor 'caption' .*set dataset\.question_column"),
    ],
)
def test_missing_columns_are_refused_with_those_that_are_there(tmp_path: Path, row: dict[str, str], fault: str) -> None:
    for path in (parquet(tmp_path, [row]), write_jsonl(tmp_path / "folder", [{"image": "1.png", **row}])):
        with pytest.raises(DataError, match=fault):
            open_asking(path)


@pytest.mark.parametrize(
    ("column", "values", "fault"),
    [
        ("question", [1], "it must hold text or lists of text"),
        ("messages", ["x"], "it must hold lists of what was said"),
    ],
)
def test_columns_of_another_type_are_refused(tmp_path: Path, column: str, values: list[Any], fault: str) -> None:
    columns = {"image": [png(0)], "answer": ["1"], "question": ["one?"], column: values}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=fault):
        open_asking(tmp_path)


def test_llava_json_is_read_from_its_folder_or_by_its_name(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [], name="unused")
    (tmp_path / "unused").unlink()
    rows = [{"id": "7", "image": "1.png", "conversations": LLAVA}, "x", {"id": "8", "conversations": LLAVA}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    for path in (tmp_path, tmp_path / "train.json"):
        assert dialogues(open_asking(path)) == [(TALK,), "not a JSON object", TEXT_ALONE]
    (tmp_path / "val.json").write_text(json.dumps(rows[:1]))
    assert dialogues(open_asking(tmp_path / "val.json")) == [(TALK,)]
    with pytest.raises(DataError, match=r"several files could hold the captions \(train\.json, val\.json\)"):
        open_asking(tmp_path)
    (tmp_path / "val.json").write_text("[{")
    with pytest.raises(DataError, match=r"val\.json: is no JSON"):
        open_asking(tmp_path / "val.json")
    (tmp_path / "val.json").write_text("{}")
    with pytest.raises(DataError, match=r"val\.json: is no list of rows"):
        open_asking(tmp_path / "val.json")


def test_other_json_beside_a_table_is_left_alone(tmp_path: Path) -> None:
    folder = write_jsonl(tmp_path, [{"image": "1.png", "question": "one?", "answer": "1"}], name="rows.jsonl")
    (folder / "info.json").write_text("{}")
    assert dialogues(open_asking(folder)) == [(ask("one?", "1"),)]
    assert dialogues(open_asking(folder / "rows.jsonl")) == [(ask("one?", "1"),)]


def test_json_that_is_no_list_does_not_hide_the_captions_beside_the_images(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(0))
    (tmp_path / "0.txt").write_text("a dog")
    (tmp_path / "dataset_infos.json").write_text('\ufeff {"rows": []}', encoding="utf-8")
    assert dialogues(open_asking(tmp_path)) == [dialogues_of_captions(["a dog"])]
    rows = json.dumps([{"image": "0.png", "question": "one?", "answer": "1"}])
    (tmp_path / "train.json").write_text("\ufeff\n" + rows, encoding="utf-8")
    assert dialogues(open_asking(tmp_path)) == [(ask("one?", "1"),)]


def test_turns_without_a_counterpart_are_dropped_and_counted(tmp_path: Path) -> None:
    talks = [LLAVA, LLAVA[:3], LLAVA[1:], [LLAVA[1], *LLAVA, LLAVA[0]]]
    source = open_asking(write_jsonl(tmp_path, [{"image": "1.png", "conversations": talk} for talk in talks]))
    found = [dialogue for dialogues in dialogues(source) for dialogue in dialogues]
    assert [dialogue.num_dropped for dialogue in found] == [0, 1, 1, 2]
    assert found == [TALK, FIRST, Dialogue(TALK.turns[1:]), TALK]


def test_images_of_a_table_may_lie_elsewhere(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "coco", [], name="unused")
    rows = [{"image": name, "conversations": LLAVA} for name in ("1.png", "gone.png")]
    table = tmp_path / "llava" / "train.json"
    table.parent.mkdir()
    table.write_text(json.dumps(rows))
    source = open_asking(table, image_root=str(tmp_path / "coco"))
    assert source[0].image.getpixel((0, 0)) == (1, 0, 7)
    assert source[0].id == "1.png"
    tried = tmp_path / "coco" / "gone.png"
    reason = f"the image cannot be read (No such file or directory: {tried})"
    assert dialogues(source) == [(TALK,), reason]
    assert len(set(source.image_keys())) == 2
    tried = table.parent / "1.png"
    fix = "dataset.image_root names another folder of images"
    assert dialogues(open_asking(table))[0] == f"the image cannot be read (No such file or directory: {tried}); {fix}"
    pq.write_table(pa.Table.from_pylist([{"image": "1.png", "question": "a?", "answer": "b"}]), tmp_path / "a.parquet")
    assert dialogues(open_asking(tmp_path / "a.parquet", image_root=str(tmp_path / "coco"))) == [(ask("a?", "b"),)]


@pytest.mark.parametrize("row", [{"conversations": LLAVA}, {"prompt": "a?", "completion": "b"}])
def test_who_reads_captions_where_there_are_questions_is_told_so(tmp_path: Path, row: dict[str, Any]) -> None:
    folder = write_jsonl(tmp_path, [{"image": "1.png", **row}])
    with pytest.raises(DataError, match=r"no column 'caption' .*; questions are read with a decoder \(`impresa data"):
        open_path(DatasetConfig(), str(folder))


def test_an_image_root_that_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    folder = write_jsonl(tmp_path / "a", numbered(1))
    for root, where in (("gone", f" (looked in {Path.cwd()})"), (str(folder / "1.png"), "")):
        fault = f"dataset.image_root: {root} is no folder; name the one that holds the images{where}"
        with pytest.raises(DataError, match=f"^{re.escape(fault)}$"):
            open_asking(folder, image_root=root)
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(DataError, match=r"no table names images here; leave dataset\.image_root out"):
        open_asking(folder, image_root=str(folder))


MIXTURE: list[dict[str, Any]] = [
    {"images": ["1.png"], "conversations": LLAVA},
    {"conversations": LLAVA},
    {"images": [], "conversations": LLAVA},
    {"images": ["1.png", "2.png"], "conversations": LLAVA},
    {"images": ["gone.png"], "conversations": LLAVA},
    {"image": ["3.png"], "conversations": LLAVA},
]


def test_rows_of_text_alone_and_of_several_images_are_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path, MIXTURE)
    source = open_asking(tmp_path)
    several = "the row has several images (2), and one is read (dataset.max_images); "
    several += "dataset.skip_unsupported_rows=true leaves such rows out"
    found = dialogues(source)
    assert found[:4] == [(TALK,), TEXT_ALONE, TEXT_ALONE, several]
    assert found[5] == (TALK,)
    assert [source[index].id for index in (0, 5)] == ["1.png", "3.png"]
    assert len(set(source.image_keys())) == 6


def test_a_mixture_is_read_without_them_where_the_key_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_jsonl(tmp_path, MIXTURE)
    caplog.set_level("INFO")
    sources = [open_asking(folder, skip_unsupported_rows=True) for _ in range(2)]
    assert [talk for talk in dialogues(sources[0]) if talk == (TALK,)] == [(TALK,)] * 2
    assert [len(source) for source in sources] == [3, 3]
    assert sources[0].left_out == {"text alone": 2, "several images": 1}
    assert caplog.messages == [f"{folder}: 3 of 6 rows are left out (text alone 2, several images 1)"]
    config = DatasetConfig(train_path=str(folder), skip_unsupported_rows=True, val_fraction=0.34)
    train, val = open_train_and_val(config, Reading(dialogues=True))
    assert (len(train), len(val)) == (2, 1)
    assert list(train.dialogues()) == [TALK, TALK]
    write_jsonl(folder, MIXTURE[1:4])
    with pytest.raises(DataError, match="all 3 rows are text alone or several images; name rows of one image"):
        open_asking(folder, skip_unsupported_rows=True)


@pytest.mark.parametrize("as_struct", [False, True])
def test_lists_of_images_in_parquet(tmp_path: Path, as_struct: bool) -> None:
    pictures: list[Any] = [[png(1)], [png(2), png(3)], [], None]
    if as_struct:
        pictures = [cell and [{"bytes": file, "path": None} for file in cell] for cell in pictures]
    rows = [{"images": cell, "question": "one?", "answer": "1"} for cell in pictures]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    source = open_asking(tmp_path)
    assert source[0].image.getpixel((0, 0)) == (1, 0, 7)
    assert ["several" in str(talk) for talk in dialogues(source)] == [False, True, False, False]
    assert dialogues(source)[2:] == [TEXT_ALONE] * 2
    assert len(set(source.image_keys())) >= 3
    assert len(open_asking(tmp_path, skip_unsupported_rows=True)) == 1


@pytest.mark.parametrize("as_struct", [False, True])
def test_lists_of_images_are_read_up_to_so_many(tmp_path: Path, as_struct: bool) -> None:
    pictures: list[Any] = [[png(1)], [png(2), png(3)], [png(4), png(5), png(6)]]
    if as_struct:
        pictures = [[{"bytes": file, "path": None} for file in cell] for cell in pictures]
    rows = [{"images": cell, "question": "one?", "answer": "1"} for cell in pictures]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    source = open_path(DatasetConfig(), str(tmp_path), Reading(dialogues=True, max_images=2))
    assert [[image.getpixel((0, 0))[0] for image in source[index].images] for index in (0, 1)] == [[1], [2, 3]]
    with pytest.raises(BadSample, match=r"several images \(3\), and 2 are read \(dataset.max_images\); "):
        source[2]


def test_paths_of_several_images_in_every_table(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [{"images": ["1.png", "2.png"], "conversations": LLAVA}])
    (tmp_path / "captions.csv").write_text('image,question,answer\n"[""2.png"",""1.png""]",one?,1\n')
    source = open_path(DatasetConfig(), str(tmp_path), Reading(dialogues=True, max_images=2))
    found = {source[index].id: [image.getpixel((0, 0))[0] for image in source[index].images] for index in (0, 1)}
    assert found == {"1.png+2.png": [1, 2], "2.png+1.png": [2, 1]}
    assert source[0].image_key != source[1].image_key


def test_samples_that_share_an_image_are_on_one_side(tmp_path: Path) -> None:
    pairs = [["1.png", "2.png"], ["3.png"], ["3.png", "2.png"], ["4.png"], ["5.png", "4.png"]]
    write_jsonl(tmp_path, [{"image": pair, "question": "one?", "answer": "1"} for pair in pairs])
    reading = Reading(dialogues=True, max_images=2)
    source = open_path(DatasetConfig(), str(tmp_path), reading)
    assert list(source.image_keys()) == ["1.png"] * 3 + ["4.png"] * 2
    config = DatasetConfig(train_path=str(tmp_path), val_fraction=0.5)
    train, val = open_train_and_val(config, reading)
    assert sorted((len(train), len(val))) == [2, 3]


def test_lists_of_images_beside_captions(tmp_path: Path) -> None:
    rows = [{"image": cell, "caption": "a"} for cell in (["1.png"], ["1.png", "2.png"], [])]
    source = open_path(DatasetConfig(), str(write_jsonl(tmp_path, rows)))
    assert source[0].image.getpixel((0, 0)) == (1, 0, 7)
    for index, reason in ((1, "several images"), (2, "no image path")):
        with pytest.raises(BadSample, match=reason):
            source[index]
    assert len(open_path(DatasetConfig(skip_unsupported_rows=True), str(tmp_path))) == 2


def test_lists_in_csv_are_lists_of_questions(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [], name="unused")
    (tmp_path / "captions.csv").write_text('image,question,answer\n1.png,"[""one?"",""two?""]","[""1"",""2""]"\n')
    assert dialogues(open_asking(tmp_path)) == [(ask("one?", "1"), ask("two?", "2"))]


def test_captions_beside_the_image_are_answers(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    (tmp_path / "0.txt").write_text("a dog\nan animal\n")
    (tmp_path / "1.txt").write_text("\n")
    source = open_asking(tmp_path)
    reasons = ["there is neither a question nor a caption", "no caption file beside the image (2.txt)"]
    assert dialogues(source) == [dialogues_of_captions(["a dog", "an animal"]), *reasons]


def test_caption_prompts_vary_but_not_for_the_same_caption() -> None:
    captions = [f"caption {number}" for number in range(40)]
    made = dialogues_of_captions(captions)
    assert [(dialogue.turns[0].answer, dialogue.kind) for dialogue in made] == [(c, "caption") for c in captions]
    assert {dialogue.turns[0].question for dialogue in made} == set(CAPTION_PROMPTS)
    assert made == dialogues_of_captions(captions)


def test_nothing_is_read_unasked(tmp_path: Path) -> None:
    rows = [{**row, "question": 7, "messages": "no list"} for row in numbered(4)]
    folder = open_path(DatasetConfig(), str(write_jsonl(tmp_path / "folder", rows)))
    table = open_path(DatasetConfig(), str(parquet(tmp_path, [{"caption": "x", "question": 7, "messages": "no list"}])))
    for source in (folder, table):
        assert source[0].dialogues == ()
        assert list(source.dialogues()) == []
    with pytest.raises(BadSample, match="the caption is empty"):
        open_path(DatasetConfig(), str(parquet(tmp_path, [{"caption": "", "question": "one?", "answer": "1"}])))[0]


def test_parts_of_one_source_keep_their_questions(tmp_path: Path) -> None:
    rows = [{"image": f"{n % 10}.png", "question": f"{n}?", "answer": "1"} for n in range(20)]
    config = DatasetConfig(train_path=str(write_jsonl(tmp_path, rows)), val_fraction=0.3)
    train, val = open_train_and_val(config, Reading(dialogues=True))
    asked = [{dialogue.turns[0].question for dialogue in part.dialogues()} for part in (train, val)]
    assert sorted(asked[0] | asked[1]) == sorted(f"{n}?" for n in range(20))
    assert {int(question[:-1]) % 10 for question in asked[0]}.isdisjoint(int(q[:-1]) % 10 for q in asked[1])
    assert dialogues(val) == [(dialogue,) for dialogue in val.dialogues()]
    assert list(open_source(config, "val", Reading(dialogues=True)).dialogues()) == list(val.dialogues())


def test_embedded_data_are_asked_through_every_door() -> None:
    config = DatasetConfig(image_size=16)
    train, val = open_train_and_val(config, Reading(dialogues=True))
    assert train[0].dialogues
    assert val[0].dialogues == open_source(config, "val", Reading(dialogues=True))[0].dialogues
    assert (
        open_path(config, "shapes", Reading(dialogues=True))[0].dialogues
        == open_source(config, "test", Reading(dialogues=True))[0].dialogues
    )
    assert open_source(config, "val")[0].dialogues == ()


def test_questions_can_be_about_sounds(tmp_path: Path) -> None:
    question = {"question": "how loud?", "answer": "very"}
    rows = [{"image": "0.png", "audio": "0.wav"}, {"image": "", "audio": "1.wav"}, {"image": "2.png", "audio": ""}]
    rows = [*({**row, **question} for row in rows), {"image": "", "audio": "", **question}]
    write_wavs(write_jsonl(tmp_path / "folder", rows), 2)
    folder = open_path(DatasetConfig(), str(tmp_path / "folder"), Reading(1.0, dialogues=True))
    for row in rows:
        row["image"] = png(1) if row["image"] else None
        row["audio"] = (tmp_path / "folder" / row["audio"]).read_bytes() if row["audio"] else None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    table = open_path(DatasetConfig(), str(tmp_path / "a.parquet"), Reading(1.0, dialogues=True))
    for source in (folder, table):
        assert dialogues(source) == [(ask("how loud?", "very"),)] * 3 + [
            TEXT_ALONE.replace("an image", "an image and without a sound")
        ]
        assert [(source[i].image is None, source[i].audio is None) for i in range(3)] == [
            (False, False),
            (True, False),
            (False, True),
        ]


def test_a_damaged_group_of_rows_has_no_questions(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table(
        {"question": [f"{n}?" for n in range(8)], "answer": ["1"] * 8, "image": [png(n) for n in range(8)]}
    )
    pq.write_table(table, path, row_group_size=4)
    start = pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    source = open_asking(path)
    assert list(source.dialogues_by_sample()) == [(), (), (), (), *((ask(f"{n}?", "1"),) for n in range(4, 8))]
