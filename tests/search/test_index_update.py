"""What an update of an index embeds, keeps and removes, and what a killed one leaves."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import impresa
from impresa.data.sources.webdataset import ShardSource
from impresa.errors import CheckpointError, DataError
from impresa.run_dir.manifest import write_manifest
from impresa.search import reading, update
from impresa.search.index import Index
from pictures import png
from shards_on_disk import tar_of
from some_index import indexed, square, squares, table, tiny_model
from tiny_run import copy_of_run, finished_run


def paths(index: Index) -> list[str | None]:
    return sorted(index.state._store.columns(["path"])["path"].to_pylist())


def test_a_folder_without_captions_becomes_rows(tmp_path: Path) -> None:
    done = indexed(tmp_path / "i", squares(tmp_path / "squares"))
    index = impresa.open_index(tmp_path / "i")
    assert (done.num_rows, done.embedded, len(index)) == (12, 12, 12)
    found = index.search(tmp_path / "squares" / "4.png", top=3)
    assert (found[0].path, found[0].rank, found[0].caption, found[0].label) == ("4.png", 1, None, None)
    assert found[0].score == pytest.approx(1, abs=1e-5)
    with Image.open(str(tmp_path / "squares" / "4.png")) as picture:
        assert index.vectors().shape == (12, 16)
        assert torch.allclose(index.vectors().norm(dim=1), torch.ones(12), atol=1e-5)
        expected = tiny_model().encode_image(picture)
    assert torch.cosine_similarity(index.vectors(), expected[None]).max() == pytest.approx(1, abs=1e-5)
    assert found[0].thumbnail is not None
    assert found[0].thumbnail.startswith(b"\xff\xd8")


def test_object_storage(tmp_path: Path) -> None:
    index, data = f"file-object-store://{tmp_path}/i", squares(tmp_path / "squares", 5)
    indexed(index, data)
    square(data / "0.png", 30)
    done = indexed(index, data)
    assert (done.embedded, done.unchanged) == (1, 4)
    found = impresa.open_index(index)
    assert (found.search(data / "4.png", top=1)[0].path, len(found)) == ("4.png", 5)


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ("ftp://server/i", "No object store provider found for scheme: 'ftp'"),
        ("hf://i", "must contain repository name"),
    ],
)
def test_object_storage_that_cannot_be_reached(index: str, reason: str, tmp_path: Path) -> None:
    for use in (lambda: impresa.open_index(index), lambda: indexed(index, squares(tmp_path / "squares", 1))):
        with pytest.raises(CheckpointError, match=reason) as caught:
            use()
        assert str(caught.value).startswith(f"{index}: cannot be reached (")


def test_columns_of_the_data_come_beside_ours(tmp_path: Path) -> None:
    indexed(tmp_path / "i", table(tmp_path / "squares"))
    index = impresa.open_index(tmp_path / "i")
    best = index.search(tmp_path / "squares" / "sub" / "3.png", top=1)[0]
    assert (best.caption, best.label, best.path) == ("square 3", "odd", "sub/3.png")
    assert best.others == {"year": 2003, "price": 1.5, "path_": "shop 3"}


def test_only_what_changed_is_embedded(tmp_path: Path) -> None:
    folder, index = squares(tmp_path / "squares"), tmp_path / "i"
    indexed(index, folder)
    again = indexed(index, folder)
    assert (again.unchanged, again.embedded, again.reused, again.removed) == (12, 0, 0, 0)
    square(folder / "new.png", 30)
    square(folder / "0.png", 31)
    os.utime(folder / "2.png", (1, 1))
    (folder / "4.png").rename(folder / "moved.png")
    (folder / "6.png").unlink()
    done = indexed(index, folder)
    assert (done.embedded, done.reused, done.removed, done.unchanged, done.num_rows) == (2, 2, 2, 8, 12)
    opened = impresa.open_index(index)
    names = {"new.png", "0.png", "moved.png", "2.png"} | {str(p.relative_to(folder)) for p in folder.rglob("*.png")}
    assert set(paths(opened)) == names
    for name in names:  # whatever way its vector came, it is that of the picture
        assert opened.search(folder / name, top=1)[0].score == pytest.approx(1, abs=1e-5)
        assert all(result.thumbnail for result in opened.search(folder / name))


def test_changed_words_are_taken_over_without_embedding(tmp_path: Path) -> None:
    folder, index = table(tmp_path / "squares"), tmp_path / "i"
    indexed(index, folder)
    rows = folder / "metadata.jsonl"
    rows.write_text(rows.read_text().replace('"square 3"', '"a new caption"'))
    done = indexed(index, folder)
    assert (done.embedded, done.reused, done.unchanged) == (0, 1, 11)
    found = impresa.open_index(index).search(folder / "sub" / "3.png", top=1)[0]
    assert found.caption == "a new caption"


def test_parquet_is_not_read_again_and_goes_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "data.parquet"
    images = [{"bytes": png(i * 20), "path": None} for i in range(6)]
    years = [2000 + i for i in range(6)]
    pq.write_table(pa.table({"image": images, "year": years}), file)
    assert indexed(tmp_path / "i", file).embedded == 6
    with monkeypatch.context() as patch:
        patch.setattr("impresa.data.sources.parquet._decoded", lambda *_: pytest.fail("a row group is read"))
        assert indexed(tmp_path / "i", file).unchanged == 6
    images[2] = {"bytes": png(250), "path": None}
    pq.write_table(pa.table({"image": images, "year": years}), file)
    done = indexed(tmp_path / "i", file)
    assert (done.embedded, done.reused) == (1, 5)
    found = impresa.open_index(tmp_path / "i").search(Image.open(pa.BufferReader(png(250))), top=1, where="year < 2004")
    assert (found[0].id, found[0].path, found[0].others) == ("data.parquet:2", None, {"year": 2002})


def test_shards_are_not_read_again_and_go_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shards").mkdir()
    for number in range(2):
        files = [(f"{i}.png", png(number * 100 + i * 20)) for i in range(3)]
        (tmp_path / "shards" / f"{number}.tar").write_bytes(tar_of(files))
    place = str(tmp_path / "shards" / "*.tar")
    assert indexed(tmp_path / "i", place).embedded == 6
    with monkeypatch.context() as patch:
        patch.setattr(ShardSource, "row", lambda *_: pytest.fail("a shard is read"))
        assert indexed(tmp_path / "i", place).unchanged == 6
    (tmp_path / "shards" / "1.tar").write_bytes(tar_of([*files[:2], ("new.png", png(250))]))
    done = indexed(tmp_path / "i", place)
    assert (done.unchanged, done.reused, done.embedded, done.removed) == (3, 2, 1, 1)
    assert impresa.open_index(tmp_path / "i").search(Image.open(pa.BufferReader(png(250))), top=1)[0].id == "1.tar/new"


def test_other_sources_stay_until_they_are_dropped(tmp_path: Path) -> None:
    one, two = squares(tmp_path / "one", 4), squares(tmp_path / "two", 6)
    indexed(tmp_path / "i", one)
    assert indexed(tmp_path / "i", two).num_rows == 10
    index = impresa.open_index(tmp_path / "i")
    assert index.sources() == [str(one), str(two)]
    shutil.rmtree(two / "sub")
    assert (index.update().removed, len(index)) == (3, 7)
    assert index.update(str(two)).unchanged == 3
    two.rename(tmp_path / "away")
    with pytest.raises(DataError, match=f"two: no such file or folder; bring it back, or .* with --drop {two}"):
        index.update()
    (tmp_path / "away").rename(two)
    update.update_index(str(tmp_path / "i"), finished_run(), list, tiny_model, modalities=("image",), drop=[str(one)])
    assert index.refresh()
    assert index.sources() == [str(two)]


def test_names_and_cells_that_no_column_holds(tmp_path: Path) -> None:
    folder, index = table(tmp_path / "squares", 3), tmp_path / "i"
    rows = folder / "metadata.jsonl"
    rows.write_text(rows.read_text().replace('"year"', f'"note": "\\ud800", "big": {2**70}, "year"'))
    assert indexed(index, folder).num_rows == 3
    others = impresa.open_index(index).search(folder / "2.png", top=1)[0].others
    assert (others["note"], others["big"]) == ("\\ud800", str(2**70))
    rows.unlink()
    (folder / "2.png").rename(Path(os.fsdecode(os.fsencode(folder / "2") + b"\xff.png")))
    indexed(index, folder)
    assert indexed(index, folder).unchanged == 3
    assert "2\\udcff.png" in paths(impresa.open_index(index))
    with pytest.raises(DataError, match=r"its name is not UTF-8, and an index keeps names; rename it"):
        indexed(index, str(tmp_path / "\udcff"))
    with pytest.raises(DataError, match=r"SOURCE: is empty; name a folder"):
        indexed(index, "")


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, index = squares(tmp_path / "squares", 3), tmp_path / "i"
    hashed = reading._hash

    def changing(file: Any, sample: Any, modality: Any) -> str:
        if str(file).endswith("2.png"):  # the picture has been decoded by now
            square(folder / "2.png", 33)
        return hashed(file, sample, modality)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "_hash", changing)
        done = indexed(index, folder)
    assert [note.reason for note in done.bad] == ["has changed while it was read; the next update reads it again"]
    assert indexed(index, folder).num_rows == 3
    assert impresa.open_index(index).search(folder / "2.png", top=1)[0].score == pytest.approx(1, abs=1e-5)


def test_bad_samples_are_counted_by_reason_and_leave_the_index(tmp_path: Path) -> None:
    folder = squares(tmp_path / "squares", 5)
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"no image")
    (folder / "c.png").write_bytes(b"")
    lines = list(indexed(tmp_path / "i", folder).left_out())
    assert lines[0] == "3 of 8 samples could not be used and were skipped:"
    assert lines[1].startswith("  2: not an image of a known format")
    assert lines[1].endswith("(as a.png)")
    assert lines[2] == "  1: the image is empty (0 bytes) (as c.png)"
    (folder / "0.png").write_bytes(b"broken now")
    assert indexed(tmp_path / "i", folder).num_rows == 4


def test_texts_become_rows_where_they_are_asked_for(tmp_path: Path) -> None:
    folder = table(tmp_path / "squares", 4)
    assert indexed(tmp_path / "i", folder).num_rows == 4
    done = indexed(tmp_path / "i", folder, modalities=("image", "text"))
    assert (done.num_rows, done.embedded, done.reused) == (8, 4, 4)
    found = impresa.open_index(tmp_path / "i").search("square 2", top=1, where="modality = 'text'")[0]
    assert (found.caption, found.thumbnail) == ("square 2", None)
    assert found.score == pytest.approx(1, abs=1e-5)


def test_nothing_usable_leaves_no_index(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no")
    with pytest.raises(DataError, match="no usable sample"):
        indexed(tmp_path / "i", tmp_path / "bad")
    assert not (tmp_path / "i").exists()


def test_another_folder_is_not_written_into(tmp_path: Path) -> None:
    folder = squares(tmp_path / "squares", 2)
    with pytest.raises(DataError, match=r"is a folder of something else; name a new folder with --out"):
        indexed(folder, folder)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="file: is a file; name a new folder"):
        indexed(tmp_path / "file", folder)
    with pytest.raises(CheckpointError, match=r"squares: is no index, and something else; give"):
        impresa.open_index(folder)


def test_an_index_of_another_model_or_preprocessing_is_refused(tmp_path: Path) -> None:
    folder, index = squares(tmp_path / "squares", 3), tmp_path / "i"
    indexed(index, folder)
    other = copy_of_run(tmp_path / "other")
    file = other / "preprocessing.json"
    file.write_text(file.read_text().replace("0.48145466", "0.5"))
    write_manifest(other)
    with pytest.raises(CheckpointError, match=r"was made with another preprocessing than .*other has now; use the run"):
        impresa.open_index(index, run=other)
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    write_manifest(other)
    with pytest.raises(CheckpointError, match=r"is of another model .*, not of .*other; use that run, or make another"):
        indexed(index, folder, run=other)
    assert len(impresa.open_index(index).search("red")) == 3


def test_a_model_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    indexed(tmp_path / "i", squares(tmp_path / "squares", 3))
    index = impresa.open_index(tmp_path / "i")
    golden = [[-number for number in row] for row in index.about.golden]
    object.__setattr__(index.about, "golden", golden)
    with pytest.raises(CheckpointError, match=r"the model gives other vectors here than when .* \(cosine -1.0000\)"):
        index.search("red")


def test_a_run_that_is_gone_is_named(tmp_path: Path) -> None:
    run = copy_of_run(tmp_path / "run")
    indexed(tmp_path / "i", squares(tmp_path / "squares", 3), run=run)
    run.rename(tmp_path / "elsewhere")
    index = impresa.open_index(tmp_path / "i")
    assert len(index.search(index.vectors()[0])) == 3
    with pytest.raises(CheckpointError, match="which is gone; name its place with --run"):
        index.search("red")
    with pytest.raises(
        CheckpointError, match=r"other: no such folder; give the place of the run that .*i was made with"
    ):
        impresa.open_index(tmp_path / "i", run=tmp_path / "other")
    assert len(impresa.open_index(tmp_path / "i", run=tmp_path / "elsewhere").search("red")) == 3
    indexed(tmp_path / "i", tmp_path / "squares", run=tmp_path / "elsewhere")
    assert len(impresa.open_index(tmp_path / "i").search("red")) == 3


_KILLED = """
import os, signal
from pathlib import Path
from types import SimpleNamespace

import impresa
from impresa.run_dir.load import load_embedder, read_run_config
from impresa.search import update
from impresa.search.opening import open_readers, source_names
update.COMMIT_ROWS = 4
committed = update._Update._commit
def commit(self):
    committed(self)
    print("batch", flush=True)
    {then}
update._Update._commit = commit
run = Path({run!r})
names = source_names([{folder!r}])
update.update_index({index!r}, run, lambda: open_readers(read_run_config(run), names, ("image",)),
                    lambda: load_embedder(run, "cpu"), modalities=("image",), batch_size=4)
"""


def begin(index: Path, folder: Path, then: str) -> subprocess.Popen[str]:
    """An update in a process of its own, which does something after each batch."""
    names = {"run": str(finished_run())}
    code = _KILLED.format(**names, folder=str(folder), index=str(index), then=then)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_update_leaves_the_old_state_and_goes_on_from_there(tmp_path: Path) -> None:
    folder, index = squares(tmp_path / "squares", 12), tmp_path / "i"
    indexed(index, folder)
    (folder / "0.png").unlink()
    for number in range(20, 30):
        square(folder / f"{number}.png", number)
    square(folder / "2.png", 35)
    process = begin(index, folder, "os.kill(os.getpid(), signal.SIGKILL)")
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == -signal.SIGKILL, errors
    opened = impresa.open_index(index)
    assert len(opened) == 12
    assert "0.png" in paths(opened)
    assert len(opened.search(opened.vectors()[0], top=20)) == 12
    done = indexed(index, folder)
    assert done.embedded == 7  # 11 less the batch of 4
    assert (done.num_rows, len(opened), opened.refresh(), len(opened)) == (21, 12, True, 21)


def test_an_update_can_be_read_beside_and_no_second_one_begins(tmp_path: Path) -> None:
    folder, index = squares(tmp_path / "squares", 8), tmp_path / "i"
    indexed(index, folder)
    before = impresa.open_index(index)
    for number in range(20, 29):
        square(folder / f"{number}.png", number)
    process = begin(index, folder, f"while not os.path.exists({str(tmp_path / 'go')!r}): pass")
    assert process.stdout is not None
    assert process.stdout.readline() == "batch\n", process.communicate()[1]
    for reader in (before, impresa.open_index(index)):
        assert len(reader.search(reader.vectors()[3], where="modality = 'image'")) == 8
    with pytest.raises(CheckpointError, match=r"is being updated by process .*; wait for it, or choose another --out"):
        indexed(index, folder)
    (tmp_path / "go").touch()
    assert process.wait(timeout=120) == 0
    assert len(before.search(before.vectors()[3])) == 8  # what it has read stays for an hour
    assert before.refresh()
    assert len(before) == 17


def test_threads_search_while_it_is_updated(tmp_path: Path) -> None:
    """Each search is of one state: none mixes the vectors of one with the names of another, or finds half an update."""
    folder, place, faults = squares(tmp_path / "squares", 8), tmp_path / "i", list[object]()
    indexed(place, folder)
    index = impresa.open_index(place)
    index.use(tiny_model())
    states = {frozenset(paths(index))}
    ended = threading.Event()

    def search() -> None:
        try:
            while not ended.is_set():
                found = index.search("red", top=50)
                names = frozenset(result.path for result in found)
                vectors = tiny_model().encode_image([folder / str(result.path) for result in found[:1]])
                again = index.search(vectors[0], top=1)[0]
                if names not in states or again.score < 0.999:
                    faults.append((names, again))
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(20, 24):
        square(folder / f"{number}.png", number)
        states.add(frozenset({*max(states, key=len), f"{number}.png"}))
        indexed(place, folder)
        assert index.refresh()
    ended.set()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(index) == 12


def test_an_index_made_anew_in_the_same_place_is_another_state(tmp_path: Path) -> None:
    folder, place = squares(tmp_path / "squares", 4), tmp_path / "i"
    indexed(place, folder)
    index = impresa.open_index(place)
    assert len(index.search(index.vectors()[0])) == 4
    shutil.rmtree(place)
    indexed(place, squares(tmp_path / "others", 6))
    assert index.refresh()
    assert len(index.search(index.vectors()[0])) == 6
    shutil.rmtree(place)
    run = copy_of_run(tmp_path / "run")
    (run / "preprocessing.json").write_text((run / "preprocessing.json").read_text() + "\n")
    write_manifest(run)
    indexed(place, folder, run=run)
    with pytest.raises(CheckpointError, match="is of another model now"):
        index.refresh()


def test_a_first_index_that_was_killed_is_unfinished(tmp_path: Path) -> None:
    folder, index = squares(tmp_path / "squares", 10), tmp_path / "i"
    process = begin(index, folder, "os.kill(os.getpid(), signal.SIGKILL)")
    process.communicate(timeout=120)
    with pytest.raises(CheckpointError, match=r"is unfinished; `impresa index RUN SOURCE --out .*` finishes it"):
        impresa.open_index(index)
    done = indexed(index, folder)
    assert (done.num_rows, done.embedded, done.unchanged) == (10, 6, 4)


def test_half_a_minute_is_the_most_that_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = []
    committed = update._Update._commit

    def commit(self: update._Update) -> None:
        commits.append(len(self._items))
        committed(self)

    monkeypatch.setattr(update._Update, "_commit", commit)
    clock = itertools.count(0, 16)
    monkeypatch.setattr(update, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    indexed(tmp_path / "i", squares(tmp_path / "squares", 5))
    assert len(commits) > 2
