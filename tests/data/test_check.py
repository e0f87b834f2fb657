"""What `inspect_source` counts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from impresa.config.dataset import DatasetConfig
from impresa.data.bad_rows import without_details
from impresa.data.check import BadRow, Spread, inspect_source
from impresa.data.sources import Reading, open_path
from pictures import numbered, png, write_jsonl
from sounds_on_disk import wav

CONFIG = DatasetConfig()


def test_everything_is_counted(tmp_path: Path) -> None:
    rows = [
        {"image": "wide.png", "caption": ["one", "one two three"], "label": "a"},
        {"image": "1.png", "caption": "one", "label": "b"},
        {"image": "2.png", "caption": "one two", "label": "b"},
        {"image": "copy.png", "caption": "four words are here"},
        {"image": "3.png", "caption": ""},
        {"image": "gone.png", "caption": "x"},
    ]
    folder = write_jsonl(tmp_path, rows)
    (folder / "wide.png").write_bytes(png(300, width=40, height=20))
    (folder / "copy.png").write_bytes(png(2))
    summary = inspect_source(open_path(CONFIG, str(folder)))
    assert (summary.num_samples, summary.num_good, summary.bad_fraction) == (6, 4, 2 / 6)
    assert summary.width_px == Spread(8, 8, 40)
    assert summary.height_px == Spread(8, 8, 20)
    assert summary.caption_words == Spread(1, 2, 4)
    assert (summary.num_captions, summary.num_distinct_captions) == (5, 4)
    assert summary.labels == {"b": 2, "a": 1}
    assert list(summary.labels) == ["b", "a"]
    assert summary.same_image == (("2.png", "copy.png"),)
    gone = f"the image cannot be read (No such file or directory: {tmp_path / 'gone.png'})"
    assert summary.bad == (
        BadRow("3.png", "the caption is empty"),
        BadRow("gone.png", f"{gone}; dataset.image_root names another folder of images"),
    )
    plain = json.loads(json.dumps(summary.to_dict()))
    assert plain["width_px"] == {"smallest": 8, "median": 8, "largest": 40}
    assert (plain["num_good"], len(plain["bad"])) == (4, 2)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("the image lies outside the folder of the data (../a.png); move it there", None),
        ("no caption file beside the image (7.txt)", None),
        ("its captions cannot be read (7.json: Expecting value: line 1 column 1)", None),
        ("the image has 300 MiB, more than dataset.max_file_mib=256", None),
        ("the label 'dog' is none of the 2 class names; set dataset.class_names", "the label ... is none of the"),
        ("\"['a dog', 'a\" begins as a list and is none", "... begins as a list and is none"),
        ("the shard ends early, after 10240 of 20480 bytes or more", "the shard ends early, after ... of ... bytes"),
        ("column 'text' is a list of 20000 items, more than 10000", "column 'text' is a list of ... items"),
        ("the caption is not UTF-8 text; as Latin-1 it reads 'x'", "the caption is not UTF-8 text"),
    ],
)
def test_reasons_are_counted_without_what_differs(reason: str, kind: str | None) -> None:
    found = without_details(reason)
    assert not re.search(r"[7/]|300|Expecting", found)
    assert found.startswith(kind or reason.split(" ", maxsplit=1)[0])


def test_images_of_the_same_bytes_but_other_sides_are_not_equal(tmp_path: Path) -> None:
    folder = write_jsonl(tmp_path, [{"image": name, "caption": "x"} for name in ("a.png", "b.png")])
    (folder / "a.png").write_bytes(png(1, 4, 2))
    (folder / "b.png").write_bytes(png(1, 2, 4))
    assert inspect_source(open_path(CONFIG, str(folder))).same_image == ()


def test_nothing_usable_is_a_summary_too(tmp_path: Path) -> None:
    folder = write_jsonl(tmp_path, [{"image": "0.png", "caption": ""}])
    summary = inspect_source(open_path(CONFIG, str(folder)))
    assert (summary.num_good, summary.bad_fraction) == (0, 1.0)
    assert summary.width_px is summary.height_px is summary.caption_words is None


def test_sounds_are_counted_where_they_are_read(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "caption": "x", "audio": f"{i}.wav"} for i in range(3)]
    folder = write_jsonl(tmp_path, rows)
    (folder / "0.wav").write_bytes(wav(300, 0.5))
    (folder / "1.wav").write_bytes(wav(300, 0.25, 8_000))
    summary = inspect_source(open_path(CONFIG, str(folder), Reading(1.0)))
    assert (summary.num_sounds, summary.sound_ms) == (2, Spread(250, 375, 500))
    assert summary.bad[0].reason.startswith("the sound cannot be read")
    unheard = inspect_source(open_path(CONFIG, str(folder)))
    assert (unheard.num_sounds, unheard.sound_ms, unheard.bad) == (0, None, ())


def test_progress_sees_every_sample(tmp_path: Path) -> None:
    seen = []
    inspect_source(
        open_path(CONFIG, str(write_jsonl(tmp_path, numbered(7)))),
        lambda indices: (seen.append(index) or index for index in indices),
    )
    assert seen == list(range(7))
