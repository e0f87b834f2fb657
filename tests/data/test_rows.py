"""Rows of any format become samples: all that a new kind of files must bring are its rows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from impresa.config.dataset import DatasetConfig
from impresa.config.decoder import DecoderConfig
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.data import sources
from impresa.data.dialogue import ask
from impresa.data.sources import BadSample, Reading, open_path, open_train_and_val, reading_of
from impresa.data.sources.rows import Row, RowSource
from pictures import png
from sounds_on_disk import wav

CONFIG = DatasetConfig()


class LineSource(RowSource):
    """A file with one caption a line, whose images are as many shades."""

    def __init__(self, path: str, config: DatasetConfig, reading: Reading, shrink_to_px: int | None) -> None:
        super().__init__(Path(path).parent, config, reading, shrink_to_px)
        self._lines = Path(path).read_text().splitlines()

    def __len__(self) -> int:
        return len(self._lines)

    def row(self, index: int) -> Row:
        cells = {"image": png(index), "caption": self._lines[index]}
        return Row(f"line {index}", cells, self._root, fault="a comment" if self._lines[index] == "#" else None)

    def scan(self, columns: Sequence[str]) -> Iterator[Row]:
        return map(self.row, range(len(self)))


class MemorySource(LineSource):
    """Rows that are given."""

    def __init__(self, rows: list[dict[str, Any]], reading: Reading = Reading(), folder: Path = Path()) -> None:  # noqa: B008
        RowSource.__init__(self, folder, CONFIG, reading, None)
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        return Row(str(index), self._rows[index], self._root)


def test_a_new_kind_of_files_is_one_class_and_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("impresa.data.sources.lines")
    monkeypatch.setattr(module, "LineSource", LineSource, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sources._KINDS, "lines", sources._Kind((".lines",), "LineSource"))
    file = tmp_path / "data.lines"
    file.write_text("one\ntwo\n#\n\nfive\n")
    source = open_path(CONFIG, str(file))
    assert isinstance(source, LineSource)
    assert sources.kind_of(CONFIG, str(tmp_path)) == "lines"
    assert (source[1].captions, source[1].image.getpixel((0, 0))) == (("two",), (1, 0, 7))
    for index, reason in ((2, "line 2: a comment"), (3, "line 3: the caption is empty")):
        with pytest.raises(BadSample, match=reason):
            source[index]
    assert list(source.captions()) == ["one", "two", "five"]
    train, val = open_train_and_val(DatasetConfig(train_path=str(file), val_fraction=0.4))
    assert (len(train), len(val)) == (3, 2)
    assert sorted([*train.captions(), *val.captions()]) == ["five", "one", "two"]


def test_cells_hold_bytes_paths_or_structs_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(7))
    images = [png(7), "a.png", {"bytes": png(7), "path": None}, {"bytes": None, "path": "a.png"}]
    source = MemorySource([{"image": image, "caption": "x"} for image in images], folder=tmp_path)
    assert [source[i].image.getpixel((0, 0))[0] for i in range(4)] == [7] * 4
    keys = list(source.image_keys())
    assert keys[0] == keys[2] != keys[1] == keys[3] == "a.png"


def test_the_second_name_of_the_image_s_column_stands_in_for_an_empty_cell() -> None:
    source = MemorySource([{"file_name": png(1), "caption": "x"}, {"image": png(2), "file_name": "no", "caption": "x"}])
    assert [source[i].image.getpixel((0, 0))[0] for i in range(2)] == [1, 2]


def test_faults_of_texts_leave_the_texts_of_other_columns() -> None:
    rows = [{"image": png(0), "caption": 7, "question": "q?", "answer": "a"}, {"image": png(1), "caption": "x"}]
    source = MemorySource(rows, Reading(dialogues=True))
    with pytest.raises(BadSample, match="0: the caption is no text but 7"):
        source[0]
    assert next(iter(source.dialogues_by_sample())) == (ask("q?", "a"),)
    assert list(source.captions_by_sample()) == [(), ("x",)]


def test_the_reason_of_an_unusable_sound_is_the_same_in_every_process() -> None:
    source = MemorySource([{"image": png(0), "caption": "x", "audio": wav(300)[:20]}], Reading(1.0))
    with pytest.raises(BadSample) as caught:
        source[0]
    assert caught.value.reason.startswith("the sound cannot be decoded as sound (")
    assert "0x" not in caught.value.reason


def test_what_is_read_follows_from_the_config() -> None:
    assert reading_of(ExperimentConfig()) == Reading(audio_seconds=None, dialogues=False)
    assert not Reading().sounds
    heard = reading_of(ExperimentConfig(audio_encoder=EncoderConfig(audio_max_seconds=2.5)))
    assert (heard, heard.sounds) == (Reading(2.5), True)
    assert reading_of(ExperimentConfig(decoder=DecoderConfig())) == Reading(dialogues=True)


def test_opening_data_imports_no_library_that_its_kind_does_not_need(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / "a.txt").write_text("x")
    code = (
        "import sys; from impresa.config.experiment import DatasetConfig; from impresa.data.sources import open_path;"
        "print([name for name in ('torch', 'PIL', 'pyarrow') if name in sys.modules]);"
        f"open_path(DatasetConfig(), {str(tmp_path)!r}); print('pyarrow' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[:2] == ["[]", "False"]
