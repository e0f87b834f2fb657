"""`impresa data check` and `impresa data export`, as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from PIL import Image

from impresa.cli.main import main
from pictures import numbered, png, write_jsonl

EXPORT = ["--num-train", "4", "--num-val", "2", "--num-test", "2", "--image-size", "16"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three good samples of four: an image lacks its caption."""
    for number in range(4):
        Image.new("RGB", (20, 10 + number), (number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = ['0.png,"a [red] thing",x', "1.png,two words,x", "2.png,,y", "3.png,two words,y"]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption,label", *rows]) + "\n")
    return tmp_path


def test_check_counts_and_shows_every_bad_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(folder), "--max-bad-fraction", "0.25"]) == 0
    out, err = capsys.readouterr()
    shown = " ".join(out.replace("│", " ").split())
    for line in (
        "samples 4",
        "usable 3",
        "bad 1 (25.0%)",
        "width 20 to 20 px, median 20",
        "height 10 to 13 px, median 11",
        "captions 3, 2 distinct",
        "caption length 2 to 3 words, median 2",
        "classes 2",
        "x: 2 y: 1",
        "bad samples 2.png: the caption is empty",
    ):
        assert line in shown
    assert err == ""


def test_too_many_bad_rows_are_exit_code_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert "2.png: the caption is empty" in out
    assert err.startswith(f"{folder}: 1 of 4 samples cannot be used; fix")
    assert err.count("\n") == 1


def test_nothing_usable_is_exit_code_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for image in folder.glob("*.png"):
        image.write_bytes(b"")
    assert main(["data", "check", str(folder), "--max-bad-fraction", "1"]) == 2
    out, err = capsys.readouterr()
    assert out.count("the image is empty (0 bytes)") == 3
    assert "bad samples by reason\n  the image is empty: 3\n  the caption is empty: 1\n" in out
    assert "none of 4 samples can be used" in err


def test_check_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(folder), "--json", "--max-bad-fraction", "0.5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_samples"], found["num_good"], found["labels"]) == (4, 3, {"x": 2, "y": 1})
    assert found["bad"] == [{"id": "2.png", "reason": "the caption is empty"}]


def test_check_says_how_much_a_square_crop_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_jsonl(tmp_path / "photos", numbered(10))
    assert main(["data", "check", str(folder)]) == 0
    assert "crop" not in capsys.readouterr().out
    for number in range(10):
        (folder / f"{number}.png").write_bytes(png(number, width=12 if number < 5 else 16))
    assert main(["data", "check", str(folder)]) == 0
    said = "The square crop leaves out 42% of the images' area (mean): dataset.resize=pad shows them whole."
    assert said in capsys.readouterr().out
    assert main(["data", "check", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["share_cut"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert said in found["notes"]


def test_check_reads_sounds_when_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        soundfile.write(folder / f"{number}.wav", [0.1] * (800 + 800 * number), 8_000)
    table = folder / "captions.csv"
    lines = table.read_text().splitlines()
    named = [f"{line},{'noise' if i == 0 else f'{i - 1}.wav'}" for i, line in enumerate(lines)]
    table.write_text("\n".join(named) + "\n")
    assert main(["data", "check", str(folder), "--audio", "--audio-column", "noise"]) == 0  # 2.png has a sound instead
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "usable 4" in shown
    assert "sounds 4 sound length 100 to 400 ms, median 250" in shown
    assert main(["data", "check", str(folder), "--audio"]) == 2
    assert "no column 'audio' for the sound" in capsys.readouterr().err


def test_check_reads_questions_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        '{"image": "0.png", "ask": ["red?", "blue?"], "say": ["yes", "not at all"], "type": ["colour", "colour"]}',
        '{"image": "1.png", "ask": "how many?", "say": "two", "type": "count"}',
        '{"image": "2.png", "ask": "what?", "say": "", "type": "x"}',
    ]
    for number in range(3):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    columns = ["--question-column", "ask", "--answer-column=say", "--kind-column", "type"]
    words = ["data", "check", str(tmp_path), "--questions", *columns, "--max-bad-fraction", "0.5"]
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "dialogues 3 answer length 1 to 3 words, median 1" in shown
    assert "questions colour: 2 count: 1" in shown
    assert "2.png: the answer is empty" in shown
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_dialogues"], found["kinds"]) == (3, {"colour": 2, "count": 1})
    assert main(["data", "check", str(tmp_path)]) == 2
    assert "no column 'caption'" in capsys.readouterr().err


def test_columns_can_be_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = folder / "captions.csv"
    table.write_text(table.read_text().replace("image,caption,label", "photo,text,kind"))
    assert main(["data", "check", str(folder)]) == 2
    assert "set dataset.image_column" in capsys.readouterr().err
    columns = ["--image-column", "photo", "--caption-column=text", "--label-column", "kind"]
    assert main(["data", "check", str(folder), *columns, "--max-bad-fraction", "0.5"]) == 0
    assert "x: 2" in capsys.readouterr().out


def test_keys_of_the_data_are_taken_in_both_spellings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "captions.csv").rename(folder / "rows.txt")
    text = (folder / "rows.txt").read_text().replace("image,caption,label", "photo,text,class")
    (folder / "rows.csv").write_text(text)
    (folder / "rows.txt").unlink()
    keys = ["dataset.image_column=photo", "--dataset.caption_column", "text", "--dataset.label_column=class"]
    check = ["data", "check", str(folder), *keys]
    assert main([*check, "dataset.max_bad_fraction=0.25", "dataset.source=folder"]) == 0
    assert "x: 2" in capsys.readouterr().out
    assert main([*check, "dataset.max_bad_fraction=0.1"]) == 2
    assert main([*check, "dataset.source=parquet"]) == 2
    assert "no parquet files there" in capsys.readouterr().err
    assert main([*check, "dataset.max_image_pixels=219", "--max-bad-fraction=1"]) == 0
    assert "the image has too many pixels: 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["optimization.lr=1"], "optimization.lr: is no key of `dataset`, the only ones here; leave it out"),
        (["--trainer.epochs", "3"], "trainer.epochs: is no key of `dataset`, the only ones here; leave it out"),
        (["dataset.batch_size=3"], "dataset.batch_size: changes nothing here, it does not say how files are read"),
        (["dataset.train_path=x"], "dataset.train_path: changes nothing here"),
        (["dataset.capton_column=x"], "dataset.capton_column: unknown key; did you mean dataset.caption_column?"),
        (["dataset.max_image_pixels=0"], "dataset.max_image_pixels: got 0; it must be a whole number at least 1"),
        (["dataset.question_column=q"], "dataset.question_column: does nothing without a decoder"),
        (["--caption_column", "x"], "--caption_column: unknown argument; did you mean --caption-column?"),
    ],
)
def test_other_keys_are_refused_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    assert main(["data", "check", str(folder), *words]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(line)
    assert (err.count("\n"), out) == (1, "")


def test_a_path_with_an_equals_sign_is_a_path(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = folder.rename(folder.parent / "year=2020")
    assert main(["data", "check", str(named), "--max-bad-fraction", "0.25"]) == 0
    assert main(["data", "check", "gone/year=2020"]) == 2
    assert "gone/year=2020: no such file or folder" in capsys.readouterr().err


def test_both_missing_columns_are_named_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "captions.csv").write_text("photo,text\n0.png,a\n")
    assert main(["data", "check", str(folder)]) == 2
    fault = "no column 'image' and no column 'caption' (there are: photo, text)"
    assert f"{fault}; set dataset.image_column and dataset.caption_column" in capsys.readouterr().err


def test_duplicates_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "red")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "captions.csv").write_text("image,caption\na.png,1\na.png,2\nb.png,3\nb.png,4\nb.png,5\nc.png,6\n")
    assert main(["data", "check", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "duplicate ids\n  b.png: 3 samples\n  a.png: 2 samples\n" in out
    assert "equal images\n  a.png, a.png#2, c.png\n  b.png, b.png#2, b.png#3\n" in out


def test_what_a_mixture_lacks_is_counted_by_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    talk = [{"from": "gpt", "value": "hello"}, {"from": "human", "value": "red?"}, {"from": "gpt", "value": "no"}]
    rows: list[dict[str, object]] = [{"image": "0.png"}, {}, {}, {"image": ["0.png", "0.png"]}]
    (tmp_path / "train.json").write_text(json.dumps([{**row, "conversations": talk} for row in rows]))
    check = ["data", "check", str(tmp_path), "--questions"]
    assert main(check) == 2
    out = " ".join(capsys.readouterr().out.split())
    assert "the row is text alone, without an image: 2 the row has several images: 1" in out
    assert main([*check, "dataset.skip_unsupported_rows=true"]) == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "samples 1 usable 1 bad 0 (0.0%) left out text alone 2, several images 1" in out
    assert "turns left out 1" in out
    assert "100% of dialogues open with an answer or end with a question, which are left out" in out


def test_texts_that_a_model_would_cut_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for number in range(8):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
        words = " ".join(chr(97 + (7 * number + place) % 26) for place in range(300 if number == 0 else 3))
        rows.append({"image": f"{number}.png", "caption": words, "question": f"{words}?", "answer": "yes"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["data", "check", str(tmp_path)]) == 0
    said = "12% of captions are longer than text_encoder.max_len (77 tokens), their ends are cut"
    assert said in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path), "--questions", "--json"]) == 0
    limit = "decoder.max_len (256 tokens)"
    assert json.loads(capsys.readouterr().out)["notes"] == [
        f"12% of dialogues are longer than {limit}, early turns or the start of the question are cut"
    ]


def test_names_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "[odd]"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "0.png")
    (folder / "captions.csv").write_text("image,caption,label\n0.png,a,:cat: [/b]\n")
    assert main(["data", "check", str(folder)]) == 0
    assert ":cat: [/b]: 1" in capsys.readouterr().out


def test_long_lists_are_cut_in_the_table_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(25):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number:02d}.png")
    rows = [f"{number:02d}.png,x,class {number:02d}" for number in range(25)]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption,label", *rows]))
    assert main(["data", "check", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "class 19: 1" in out
    assert "class 20: 1" not in out
    assert "and 5 more; --json has them all" in out
    assert ", ".join(f"{number:02d}.png" for number in range(25)) in out


def test_embedded_data_can_be_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "shapes"]) == 0
    assert "512" in capsys.readouterr().out


@pytest.mark.parametrize("file_format", ["folder", "parquet"])
def test_export_writes_what_check_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str], file_format: str) -> None:
    target = tmp_path / "data"
    assert main(["data", "export", "shapes", str(target), *EXPORT, "--seed", "3", "--format", file_format]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"{target / split}: {count} images of 16 x 16 pixels"
        for split, count in (("train", 4), ("val", 2), ("test", 2))
    ]
    assert err == ""
    assert main(["data", "check", str(target / "train"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_good"] == 4


def test_export_replaces_only_when_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "export", "shapes", str(tmp_path), *EXPORT]
    assert [main(words), main(words), main([*words, "--force"])] == [0, 2, 0]
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["check"],
        ["check", "gone"],
        ["check", ""],
        ["check", "shapes", "--val", ""],
        ["check", "shapes", "--max-bad-fraction", "2"],
        ["check", "shapes", "--max-bad-fraction", "nan"],
        ["export", "photos", "x"],
        ["export", "shapes"],
        ["export", "shapes", "x", "--num-train", "0"],
        ["export", "shapes", "x", "--image-size", "big"],
        ["export", "shapes", "x", "--image-size", "200000"],
        ["export", "shapes", "x", "--seed=-1"],
        ["export", "shapes", "x", "--format", "zip"],
        ["export", "shapes", "x", "dataset.image_size=3"],
    ],
)
def test_wrong_words_are_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", *words]) == 2
    assert capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_and_refusals_import_no_torch() -> None:
    code = "import sys; from impresa.cli.main import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    for words in (["--help"], ["export", "--help"], ["check", "gone", "--max-bad-fraction", "7"]):
        done = subprocess.run([sys.executable, "-c", code, "data", *words], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
