"""Files of others: which a walk finds, and which are opened."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from impresa.data.disk import files_below, open_regular, read_regular

FILES = ("z/1.txt", "z/deep/2.txt", "b.txt", ".hidden.txt", "._b.txt", ".ipynb_checkpoints/b.txt", "z/.git/x.txt")


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def found(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in files_below(folder)]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    assert found(make(tmp_path, *FILES)) == ["b.txt", "z/1.txt", "z/deep/2.txt"]


def test_linked_folders_are_followed_and_each_real_folder_is_entered_once(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", "z/1.txt", "b.txt")
    store = make(tmp_path / "store", "s.txt", "deep/t.txt")
    (folder / "a").symlink_to(folder / "z")  # a folder that is there already keeps its own name
    (folder / "m").symlink_to(store)
    (folder / "n").symlink_to(store)
    (folder / "o").symlink_to(store / "deep")
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    (folder / "up").symlink_to(tmp_path)
    (folder / "z" / "loop").symlink_to("..")
    (store / "deep" / "loop").symlink_to(store)
    assert found(folder) == ["b.txt", "gone", "m/s.txt", "m/deep/t.txt", "z/1.txt"]
    linked = tmp_path / "link"
    linked.symlink_to(folder)
    assert found(linked) == found(folder)


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scandir = os.scandir

    def refuse(path: str) -> object:
        if os.fspath(path).endswith("z"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    make(tmp_path, "b.txt", "z/1.txt")
    monkeypatch.setattr(os, "scandir", refuse)
    assert found(tmp_path) == ["b.txt"]
    assert "z: left out, the folder cannot be listed (Permission denied)" in caplog.text


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    for name, kind in (("pipe", "named pipe"), ("link", "named pipe"), ("socket", "socket"), ("/dev/zero", "device")):
        for read in (read_regular, open_regular):
            with pytest.raises(ValueError, match=f"is no regular file but a {kind}"):
                read(tmp_path / name)
    server.close()
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "gone")


def test_large_files_are_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"has 1048576 MiB, more than dataset\.max_file_mib=2"):
        read_regular(tmp_path / "huge", 2 << 20)
    (tmp_path / "small").write_bytes(b"12345")
    assert read_regular(tmp_path / "small", 5) == b"12345"
    with open_regular(tmp_path / "small", 5) as file:
        assert file.read() == b"12345"
