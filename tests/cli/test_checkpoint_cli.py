"""`impresa checkpoint convert`: both ways, and bad input in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from impresa.cli.main import main
from impresa.errors import CheckpointError
from impresa.training.checkpoints import read_checkpoint
from impresa.training.sharded_checkpoints import STATE, whole_content
from tiny_run import finished_run


def last() -> Path:
    return finished_run() / "checkpoints" / "last.ckpt"


def assert_same(one: object, other: object) -> None:
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(other, one, rtol=0, atol=0)
    elif isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    else:
        assert one == other


def test_there_and_back_nothing_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts, single = tmp_path / "new" / "parts.ckpt", tmp_path / "single.ckpt"
    assert main(["checkpoint", "convert", str(last()), "--to", "sharded", "--out", str(parts)]) == 0
    assert main(["checkpoint", "convert", str(parts), "--to", "single", "--out", str(single)]) == 0
    assert capsys.readouterr().out.split() == [str(parts), str(single)]
    assert sorted(path.suffix for path in parts.iterdir()) == [".pt", ".safetensors"]
    assert_same(read_checkpoint(last()), read_checkpoint(single))
    assert (parts / STATE).stat().st_size < single.stat().st_size


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("nowhere --to single --out new", "nowhere: does not exist; name a checkpoint, such as RUN/checkpoints/last.c"),
        ("RUN --to single --out new", "RUN: is a run; name one of its checkpoints, such as LAST"),
        ("LAST --to single --out new", "LAST: is single already; there is nothing to convert"),
        ("LAST --to sharded --out full", "full: is there already; name a new --out"),
        ("LAST --to sharded --out file/new", "file"),
        ("file --to sharded --out new", "file: is no usable checkpoint (it is damaged, or something else); "),
        ("full --to single --out new", "full: is no usable checkpoint "),
        ("LAST --to parts --out new", "impresa checkpoint convert: argument --to: invalid choice: 'parts' "),
        ("LAST --to sharded", "impresa checkpoint convert: the following arguments are required: --out; "),
    ],
)
def test_bad_input_is_one_line(
    words: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").touch()
    (tmp_path / "file").write_text("no checkpoint")
    given = {"LAST": str(last()), "RUN": str(finished_run())}
    assert main(["checkpoint", "convert", *(given.get(word, word) for word in words.split())]) == 2
    err = capsys.readouterr().err
    for short, path in given.items():
        err = err.replace(path, short)
    assert err.startswith(line)
    assert err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def in_parts(folder: Path) -> Path:
    main(["checkpoint", "convert", str(last()), "--to", "sharded", "--out", str(folder)])
    return folder


def test_a_part_that_is_missing_or_cut_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = in_parts(tmp_path / "parts.ckpt")
    (part,) = folder.glob("*.safetensors")
    os.truncate(part, part.stat().st_size // 2)
    convert = ["checkpoint", "convert", str(folder), "--to", "single", "--out", str(tmp_path / "single.ckpt")]
    assert main(convert) == 2
    part.unlink()
    assert main(convert) == 2
    reason = f"is no usable checkpoint ({part.name} is missing or is not whole); remove it to resume from another"
    assert capsys.readouterr().err.splitlines() == [f"{folder}: {reason}"] * 2


def test_no_memory_is_taken_for_what_no_file_has(tmp_path: Path) -> None:
    folder = in_parts(tmp_path / "parts.ckpt")
    state = torch.load(folder / STATE, weights_only=True)
    state["model"]["text_encoder.head.weight"] = torch.empty(1 << 20, 1 << 20, device="meta")
    torch.save(state, folder / STATE)
    with pytest.raises(CheckpointError, match=r"\(its parts are smaller than its state\.pt says\)"):
        read_checkpoint(folder)


def test_parts_of_another_checkpoint_are_told(tmp_path: Path) -> None:
    folder = in_parts(tmp_path / "parts.ckpt")
    content = read_checkpoint(folder)
    content["model"]["text_encoder.head.weight"] = torch.empty(3, 3, device="meta")
    with pytest.raises(CheckpointError, match=r"no usable checkpoint \(its parts are not those of its state.pt\)"):
        whole_content(content)
