"""Files that others wrote: one walk over folders, and one way to open a file.

Only regular files are opened: a named pipe would wait for ever, and a device has no end.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from impresa.config.dataset import DatasetConfig

logger = logging.getLogger(__name__)

MAX_BYTES = DatasetConfig.max_file_mib << 20
"""Of an image or a sound, where no config says otherwise."""

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Without waiting: a pipe may have taken the place of a file since it was looked at."""
_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}


def files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and below it, in the order of `folders_below`."""
    return paths_of(folders_below(folder), lambda _: True)


def folders_below(folder: Path) -> list[tuple[Path, list[str]]]:
    """A folder and all folders below it, each with the names of its own files; both sorted by name.

    Hidden files and folders are left out. Linked folders are followed; each real folder is entered once, by its own
    name rather than that of a link. Those who look for few of many files have no need of a path for each.
    """
    listed: list[tuple[tuple[str, ...], Path, list[str]]] = []
    entered: set[tuple[int, int]] = set()
    links: list[Path] = [folder]
    while links:
        top, *links = links
        for parent, folders, names in os.walk(top, onerror=_report):
            here = Path(parent)
            if not _first_time(here, entered) or (here == top != folder and _leads_up(top)):
                folders.clear()
                continue
            visible = [name for name in folders if not name.startswith(".")]
            folders[:] = [name for name in visible if not os.path.islink(os.path.join(parent, name))]
            links += (here / name for name in sorted(set(visible) - set(folders)))
            listed.append((here.parts, here, sorted(name for name in names if not name.startswith("."))))
    return [(here, names) for _, here, names in sorted(listed)]


def paths_of(folders: Iterable[tuple[Path, list[str]]], wanted: Callable[[str], bool]) -> Iterator[Path]:
    """The files of some folders that have a wanted name."""
    return (here / name for here, names in folders for name in names if wanted(name))


def _first_time(folder: Path, entered: set[tuple[int, int]]) -> bool:
    try:
        found = folder.stat()
    except OSError as error:
        _report(error)
        return False
    place = (found.st_dev, found.st_ino)
    is_new = place not in entered
    entered.add(place)
    return is_new


def _leads_up(link: Path) -> bool:
    """True for a link to a folder that holds the link itself."""
    return Path(os.path.realpath(link.parent)).is_relative_to(os.path.realpath(link))


def _report(error: OSError) -> None:
    logger.warning("%s: left out, the folder cannot be listed (%s)", error.filename, error.strerror)


def open_regular(path: str | Path, max_bytes: int | None = None) -> BinaryIO:
    """A regular file, open for reading in binary.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no regular file, or has more than `max_bytes`; the message is the reason alone.
    """
    return os.fdopen(_open(path, max_bytes)[0], "rb")


def read_regular(path: str | Path, max_bytes: int | None = None) -> bytes:
    """The content of a regular file; the errors are those of `open_regular`."""
    handle, size = _open(path, max_bytes)
    try:
        content = os.read(handle, size)
        while len(content) < size and (more := os.read(handle, size - len(content))):
            content += more
        return content
    finally:
        os.close(handle)


def check_size(num_bytes: int, max_bytes: int | None) -> None:
    """Raise a ValueError for more bytes than allowed; the message is the reason alone."""
    if max_bytes is not None and num_bytes > max_bytes:
        size, most = num_bytes / (1 << 20), max_bytes / (1 << 20)
        raise ValueError(f"has {size:.0f} MiB, more than dataset.max_file_mib={most:g}")


def _open(path: str | Path, max_bytes: int | None) -> tuple[int, int]:
    """An open file's descriptor and size in bytes."""
    _check_kind(os.stat(path))  # opening a device can already do something
    handle = os.open(path, _FLAGS)
    try:
        found = os.fstat(handle)
        _check_kind(found)
        check_size(found.st_size, max_bytes)
    except BaseException:
        os.close(handle)
        raise
    return handle, found.st_size


def _check_kind(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"is no regular file but {_KINDS.get(stat.S_IFMT(found.st_mode), 'a device')}")
