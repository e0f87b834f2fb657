"""Names that stay in their folder, files that are appended to, and errors that name the file they are about."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from full_disk import files_of_at_most
from impresa.errors import CheckpointError
from impresa.files import append, inside, refuse_links, replacing, replacing_folder, write_atomic


@pytest.mark.parametrize("name", ["a", "a.b", "a/b", "a/b/", "./a", "..a", "a..b", "ä", "~"])
def test_a_name_that_stays_is_joined(name: str) -> None:
    assert inside(Path("run"), name) == Path("run") / name


@pytest.mark.parametrize("name", ["", "/", "/a", "..", "../a", "a/../b", "a/..", "a\\..\\b", "\\a", "C:\\a", "C:a"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    for directly in (False, True):
        with pytest.raises(ValueError, match="does not stay in its folder"):
            inside(Path("run"), name, directly=directly)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *((name, "holds characters that no name should have") for name in ("a\0b", "a\nb", "\ud800", "x\x1b[31m")),
        *((name, "is longer than 200 bytes") for name in ("a" * 201, "a/" + "ä" * 101)),
    ],
)
def test_a_name_that_nothing_can_have_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        inside(Path("run"), name)


@pytest.mark.parametrize("name", ["a/b", ".a", "."])
def test_a_file_name_has_no_folders(name: str) -> None:
    with pytest.raises(ValueError, match="is no file name"):
        inside(Path("run"), name, directly=True)


def test_links_and_pipes_are_refused_where_a_run_is_written(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / "events" / "name").mkdir(parents=True)
    outside.mkdir()
    refuse_links(run, files=True)
    (run / "metrics.csv").symlink_to(outside / "file")
    refuse_links(run)
    with pytest.raises(CheckpointError, match=r"metrics\.csv: is a link"):
        refuse_links(run, files=True)
    (run / "metrics.csv").unlink()
    os.mkfifo(run / "bad_samples.jsonl")
    with pytest.raises(CheckpointError, match=r"bad_samples\.jsonl: .* no plain file"):
        refuse_links(run, files=True)
    (run / "events" / "deep").symlink_to(outside)
    with pytest.raises(CheckpointError, match=r"events/deep: is a link"):
        refuse_links(run)
    linked = tmp_path / "linked"
    linked.symlink_to(outside)
    refuse_links(linked, files=True)  # the user named it


def test_append_writes_all_or_nothing_and_through_no_link(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append(path, "one\n")
    with files_of_at_most(10), pytest.raises(OSError, match="lines") as caught:
        append(path, "a line that is too long\n")
    assert caught.value.errno == errno.EFBIG
    append(path, "two\n")
    assert path.read_text() == "one\ntwo\n"
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match="link") as caught:
        append(tmp_path / "link", "three\n")
    assert caught.value.errno == errno.ELOOP
    assert path.read_text() == "one\ntwo\n"


def test_whoever_writes_the_error_names_the_file_and_the_half_is_gone(tmp_path: Path) -> None:
    big = {"weight": torch.zeros(10_000)}
    words = {f"word{number}": number for number in range(2000)}
    target = tmp_path / "target"
    target.write_text("old")

    def save(path: Path) -> None:
        with path.open("wb") as file:
            torch.save(big, file)

    for write in (
        lambda path: path.write_bytes(bytes(10_000)),
        save,
        lambda path: save_file(big, path),
        lambda path: Tokenizer(models.WordLevel(words, unk_token="word0")).save(str(path)),
    ):
        with files_of_at_most(2000), pytest.raises(OSError, match="target") as caught, replacing(target) as temporary:
            write(temporary)
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(target))
        folder = tmp_path / "folder"
        with files_of_at_most(2000), pytest.raises(OSError, match="folder") as caught, replacing_folder(folder) as new:
            write(new / "file")
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(folder))
        assert [path.name for path in tmp_path.iterdir()] == ["target"]
        assert target.read_text() == "old"


def test_an_error_about_another_file_keeps_its_name_and_a_mistake_its_class(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "target"):
        (tmp_path / "source").read_bytes()
    assert caught.value.filename == str(tmp_path / "source")
    with pytest.raises(KeyError), replacing(tmp_path / "target"):
        raise KeyError("ours")


def test_a_folder_that_was_deleted_does_not_come_back(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        write_atomic(tmp_path / "gone" / "file", "text")
    assert not (tmp_path / "gone").exists()


def test_no_file_takes_the_place_of_a_device_or_a_pipe(tmp_path: Path) -> None:
    """Whoever may write to /dev would do without /dev/null and /dev/stdout from then on."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_pipe").symlink_to("pipe")
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    (tmp_path / "null").symlink_to("/dev/null")
    before = sorted(tmp_path.iterdir())
    for path in before:
        with pytest.raises(OSError, match="Is a device or a pipe") as caught:
            write_atomic(path, "text")
        assert caught.value.filename == str(path)
    assert sorted(tmp_path.iterdir()) == before
    assert not any(path.is_file() and not path.is_symlink() for path in before)
