"""`impresa data check`: histograms, near-equal images, overlap between splits, the contact sheet and the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from browser import WITH_CHROMIUM, opened
from impresa.cli.main import main
from impresa.data.check import Histogram
from pictures import photo
from shards_on_disk import write_shards


def view(number: int) -> Image.Image:
    return photo(128, 96).rotate(40 * number)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures for training; validation has one of them as it is, one as a JPEG, and one of its own."""
    root = tmp_path / "data"
    rows: dict[str, list[dict[str, str]]] = {"train": [], "val": []}
    for split, numbers in (("train", range(4)), ("val", (0, 1, 7))):
        (root / split).mkdir(parents=True)
        for number in numbers:
            name = f"{number}.jpg" if (split, number) == ("val", 1) else f"{number}.png"
            view(number).save(root / split / name, quality=85)
            rows[split].append({"image": name, "caption": " ".join(["<b>word</b>"] * (number + 1))})
        (root / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows[split])))
    return root


def check(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["data", "check", *words]) == 0
    return capsys.readouterr().out


def test_overlap_between_splits_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = check(capsys, str(folder))
    assert "shared by train and val: 1 equal, 1 near-equal\n  train/0.png, val/0.png\n  train/1.png, val/1.jpg\n" in out
    assert "near-equal images\n  train/1.png, val/1.jpg\n" in out
    found = json.loads(check(capsys, str(folder), "--json"))
    assert found["splits"] == {"train": 4, "val": 3}
    assert found["overlaps"] == [
        {
            "splits": ["train", "val"],
            "num_equal": 1,
            "num_near": 1,
            "examples": [["train/0.png", "val/0.png"], ["train/1.png", "val/1.jpg"]],
        }
    ]
    assert found["same_image"] == [["train/0.png", "val/0.png"]]
    assert found["duplicates"]["num_groups"] == 2


def test_splits_may_lie_anywhere(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = (folder / "val").rename(tmp_path / "elsewhere")
    words = [str(folder / "train"), "--val", str(other), "--test", str(other), "--json"]
    found = json.loads(check(capsys, *words))
    assert found["splits"] == {"train": 4, "val": 3, "test": 3}
    shared = {tuple(overlap["splits"]): (overlap["num_equal"], overlap["num_near"]) for overlap in found["overlaps"]}
    assert shared == {("train", "val"): (1, 1), ("train", "test"): (1, 1), ("val", "test"): (3, 0)}


def test_a_pack_has_no_overlap(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "pack", str(folder), "--out", str(tmp_path / "out"), "--split", "0.6,0.2,0.2"]) == 0
    capsys.readouterr()
    found = json.loads(check(capsys, str(tmp_path / "out"), "--json"))
    assert sum(found["splits"].values()) == 7
    assert len(found["splits"]) == 3
    assert found["overlaps"] == []


def test_histograms_add_up(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(check(capsys, str(folder), "--json"))
    assert found["widths_px"] == {"start": 128, "width": 1, "counts": [7]}
    assert found["captions_words"] == {"start": 1, "width": 1, "counts": [2, 2, 1, 1, 0, 0, 0, 1]}
    out = check(capsys, str(folder))
    assert "caption lengths\n  1 words ############################## 2\n" in out
    assert Histogram.of([]) is None
    wide = Histogram.of([0, 3, 999])
    assert wide is not None
    assert (wide.width, sum(wide.counts), len(wide.counts)) == (50, 3, 20)


def test_shards_can_be_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_shards(tmp_path / "shards")
    found = json.loads(check(capsys, str(folder), "--json"))
    assert found["num_good"] == 15
    assert sum(found["captions_words"]["counts"]) == 15


def test_the_sheet_shows_all_pictures(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(capsys, str(folder), "--sheet", str(tmp_path / "sheet.png"))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (6 * 172 + 12, 2 * (160 + 4 * 13 + 12) + 12)
        assert len(sheet.getcolors(1 << 20) or []) > 100


def test_the_page_stands_alone_and_nothing_in_it_is_markup(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "train" / "2.png").write_bytes(b"")
    check(capsys, str(folder), "--html", str(tmp_path / "page.html"), "--max-bad-fraction", "0.5")
    page = (tmp_path / "page.html").read_text()
    assert "<b>word</b>" not in page
    assert "&lt;b&gt;word&lt;/b&gt;" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    for words in (
        "Shared between splits",
        "1 equal, 1 nearly equal",
        "the image is empty",
        "prefers-color-scheme: dark",
    ):
        assert words in page
    assert page.count("<img") == 2 * 2 + 6


@WITH_CHROMIUM
def test_the_page_fits_a_telephone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(capsys, str(folder), "--html", str(tmp_path / "out.html"))
    script = "<script>document.title = `${document.documentElement.scrollWidth} ${innerWidth}`</script></body>"
    page = (tmp_path / "out.html").read_text().replace("default-src 'none';", "").replace("</body>", script)
    dom = opened(page, tmp_path, "--window-size=390,900", "--dump-dom")
    shown = re.search(r"<title>(\d+) (\d+)</title>", dom)
    assert shown is not None
    assert int(shown[1]) <= int(shown[2])


@pytest.mark.parametrize("option", ["--html", "--sheet"])
def test_what_cannot_be_written_is_said_at_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert main(["data", "check", str(folder), option, str(tmp_path / "gone" / "x")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"{option}: ")
