"""The files of a map: a table that others read, and a page that holds hostile words without running them."""

from __future__ import annotations

import base64
import errno
import io
import json
import re
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fake_model import ColourModel, ListSource, colour_source
from impresa.data.sample import Sample
from impresa.data.sources import BadSample
from impresa.embedding_map import page as module
from impresa.embedding_map.draw import draw_map
from impresa.embedding_map.page import safe_json
from impresa.errors import DataError

HOSTILE = '</script><script>document.title="run"</script><img src=x onerror=alert(1)> \u202e]]>&amp; \u2028 {{ 7*7 }}'


def drawn(source: ListSource, folder: Path, **options: object) -> Path:
    options = {"name": "run", "data": "squares", **options}
    return draw_map(ColourModel(), {"test": source}, folder, **options).page  # type: ignore[arg-type]


def values_of(page: str) -> dict[str, list]:
    found = re.search(r'<script type="application/json" id="values">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_table_has_a_row_for_each_point_and_neighbours_as_embedding_atlas_reads_them(tmp_path: Path) -> None:
    drawn(colour_source(30, captions=2, labels=True, size=(8, 6)), tmp_path / "map")
    table = pq.read_table(tmp_path / "map" / "map.parquet")
    rows = table.to_pylist()
    assert len(rows) == 90
    vectors = np.array([row["vector"] for row in rows])
    distances = 1 - vectors @ vectors.T
    np.fill_diagonal(distances, np.inf)
    for number, row in enumerate(rows):
        near = row["neighbors"]
        assert list(near) == ["ids", "distances"]
        assert len(set(near["ids"])) == 10
        assert number not in near["ids"]
        np.testing.assert_allclose(distances[number, near["ids"]], near["distances"], atol=1e-5)
        np.testing.assert_allclose(near["distances"], np.sort(distances[number])[:10], atol=1e-5)
    images = [row for row in rows if row["modality"] == "image"]
    assert Image.open(io.BytesIO(images[3]["image"]["bytes"])).size == (8, 6)
    assert images[3]["caption"] == "white square 3 0\nwhite square 3 1"
    assert [rows[text]["caption"] for text in images[3]["partners"]] == images[3]["caption"].split("\n")
    assert (images[3]["id"], images[3]["label"], images[3]["split"]) == ("square-3", "white", "test")
    assert all(row["image"] is None for row in rows if row["modality"] == "text")
    xy = np.array([[row["x"], row["y"]] for row in rows])
    np.testing.assert_allclose(xy.mean(axis=0), 0, atol=1e-6)
    centred = np.array([[row["x_centred"], row["y_centred"]] for row in images])
    np.testing.assert_allclose(centred.mean(axis=0), 0, atol=1e-6)  # of the images alone


def test_names_that_are_no_unicode_are_written_with_escapes(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8), (220, 20, 20))
    page = drawn(ListSource([Sample("caf\udce9.png", picture, ("red",), label="\udce9")]), tmp_path / "map")
    rows = pq.read_table(page.parent / "map.parquet").to_pylist()
    assert (rows[0]["id"], rows[0]["label"]) == ("caf\\udce9.png", "\\udce9")
    assert values_of(page.read_text(encoding="utf-8"))["id"][0] == "caf\udce9.png"


@pytest.mark.parametrize("text", [HOSTILE, "<!--", "\u2028\u2029", '"\\', "\udce9"])
def test_json_in_a_page_ends_no_element_and_keeps_its_values(text: str) -> None:
    written = safe_json({text: [text]})
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == {text: [text]}


def test_hostile_words_stay_words_on_the_page(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8), (220, 20, 20))
    source = ListSource([Sample(HOSTILE, picture, (HOSTILE,), label=HOSTILE), BadSample(HOSTILE, HOSTILE)])
    page = drawn(source, tmp_path / "map", name=HOSTILE, data=HOSTILE).read_text(encoding="utf-8")
    assert page.count("<script") == 2
    assert "<img src=x" not in page
    assert values_of(page)["caption"] == ["", HOSTILE]
    assert "49" not in re.sub(
        r"<style>.*?</style>|<script.*?</script>|base64,[^\"]*|sha256-[^']*", "", page, flags=re.S
    )


def test_the_policy_knows_the_script_and_nothing_comes_from_elsewhere(tmp_path: Path) -> None:
    page = drawn(colour_source(6), tmp_path / "map").read_text(encoding="utf-8")
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", page)
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(", script)


def test_many_pictures_are_small_and_all_sheets_stay_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise is the worst that JPEG can meet."""
    generator, files = np.random.default_rng(0), []
    for _ in range(40):
        file = io.BytesIO()
        Image.fromarray(generator.integers(0, 255, (160, 80, 3), dtype=np.uint8)).save(file, "PNG", compress_level=0)
        files.append(file.getvalue())
    assert module._Tiles([*files[:3], None, files[0]]).places == [0, 1, 2, -1, 0]
    assert module._Tiles(files).side_px == 128
    monkeypatch.setattr(module, "_MOST_PICTURE_PIXELS", 40 * 70 * 70)
    monkeypatch.setattr(module, "_SHEET_TILES", 32)
    tiles = module._Tiles(files)
    assert (tiles.side_px, len(tiles.sheets()), tiles.sizes[-1]) == (64, 2, (32, 64))
    large = sum(map(len, tiles.sheets()))
    monkeypatch.setattr(module, "_MOST_SHEET_BYTES", large // 2)
    assert sum(map(len, tiles.sheets())) < 0.75 * large


def test_what_is_not_drawn_is_said(tmp_path: Path) -> None:
    items = [*colour_source(9).items, BadSample("broken", "no picture")]
    found = draw_map(ColourModel(), {"test": ListSource(items)}, tmp_path / "map", name="run", data="squares", limit=5)
    assert found.notes[0].startswith("two dimensions show ")
    assert found.notes[1:] == ("5 of 10 samples, at even distances; --limit 10 takes all",)
    found = draw_map(ColourModel(), {"test": ListSource(items)}, tmp_path / "map", name="run", data="squares")
    assert found.notes[1:] == ("1 of 10 samples could not be used and were skipped (broken: no picture)",)
    assert "no picture" in found.page.read_text(encoding="utf-8")


def test_a_failure_leaves_no_folder_behind_and_an_old_map_as_it_was(tmp_path: Path) -> None:
    bad = ListSource([BadSample("broken", "no picture")])
    with pytest.raises(DataError, match="squares: no usable sample"):
        drawn(bad, tmp_path / "deep" / "map")
    assert not (tmp_path / "deep" / "map").exists()
    page = drawn(colour_source(6), tmp_path / "map")
    before = page.read_bytes()
    with pytest.raises(DataError, match="no usable sample"):
        drawn(bad, tmp_path / "map")
    assert page.read_bytes() == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=r"cannot be written \(Not a directory\); name another with --out"):
        drawn(colour_source(6), tmp_path / "file" / "map")


def test_a_full_disk_is_named_with_its_file_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*map.parquet'"):
        drawn(colour_source(6), tmp_path / "map")
    assert list(tmp_path.iterdir()) == []


def test_the_same_data_give_the_same_page(tmp_path: Path) -> None:
    pages = [drawn(colour_source(12, captions=2), tmp_path / name).read_bytes() for name in ("one", "two")]
    assert pages[0] == pages[1]
