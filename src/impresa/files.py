"""Writing files so that a reader never sees half of one, and nothing is written outside the folder that is meant."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from impresa.errors import CheckpointError, ImpresaError, system_error

_REPLACED = re.compile(r"\.(.+)\.\w{8}\.old")
"""Name of what is being replaced, made of that of the temporary file or folder."""
_READING_UMASK = threading.Lock()
"""It can be read only by setting it, which two threads at once would leave at 0."""
_LONGEST_NAME = 200
"""Bytes of a name; file systems take 255, and a temporary name is longer."""


def inside(folder: Path, name: str, *, directly: bool = False) -> Path:
    """The path of something in a folder whose name comes from a file or a setting, and may be made to lead elsewhere.

    Args:
        folder: where it must lie.
        name: with slashes for folders in it.
        directly: refuse folders in it, and names that begin with a dot.

    Raises:
        ValueError: the name leads out of the folder, or nothing can be called so; the message is the reason alone.
    """
    parts = re.split(r"[/\\]", name)
    if ".." in parts or not parts[0] or re.match(r"\w:", name):
        raise ValueError(f"{name!r} does not stay in its folder")
    if not name.isprintable():
        raise ValueError(f"{name!r} holds characters that no name should have")
    if max(len(os.fsencode(part)) for part in parts) > _LONGEST_NAME:
        raise ValueError(f"{name[:20]!r}... is longer than {_LONGEST_NAME} bytes")
    if directly and (len(parts) > 1 or name.startswith(".")):
        raise ValueError(f"{name!r} is no file name")
    return folder / name


def refuse_links(folder: Path, *, files: bool = False) -> None:
    """Refuse folders inside `folder` that are links: what is written into one lands somewhere else.

    With `files`, links to files and whatever is no plain file are refused too: a training reads and adds to files, and
    not all of them have an end. Elsewhere a new file takes the place of a link. What W&B has in its folder is its own.

    Raises:
        CheckpointError: names the first one.
    """
    for parent, folders, names in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *(names if files else ()))):
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                fix = "put the thing itself in its place, or take a copy of the run with `cp -rL`"
                raise CheckpointError(f"{path}: is a link or no plain file, and is not written to; {fix}")
        folders[:] = [name for name in folders if name != "wandb"]


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Write `content` (text as UTF-8) to `path` by way of `replacing`, and return `path`.

    An interrupted write leaves the old file as it was.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def append(path: Path, content: str | bytes) -> None:
    """Add `content` (text as UTF-8) to a file in one write, all of it or nothing; the file is made if needed.

    A link in its place is refused. Several processes may append to one file.

    Raises:
        OSError: the file cannot be written; it names `path`.
    """
    data = content.encode("utf-8", errors="replace") if isinstance(content, str) else content
    with naming(path):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        written = 0
        try:
            while written < len(data):
                written += os.write(handle, data[written:])
        except OSError:
            end = os.lseek(handle, 0, os.SEEK_CUR)
            if written and os.fstat(handle).st_size == end:  # nobody else has appended since
                os.ftruncate(handle, end - written)
            raise
        finally:
            os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it takes the name `path` when the block ends well.

    The folder must be there: a run that somebody has deleted does not come to life again.

    Raises:
        OSError: the file cannot be written, whichever library was writing it, or a device or a pipe is there, such as
            /dev/null or /dev/stdout, whose place no file may take; it names `path`.
    """
    with naming(path):
        _refuse_devices(path)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files private; a run is as readable as its folder
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _refuse_devices(path: Path) -> None:
    is_open_file = path.is_symlink() and os.readlink(path).startswith("/proc/")  # as /dev/stdout is one
    if is_open_file or (path.exists() and not (path.is_file() or path.is_dir())):
        raise OSError(errno.EINVAL, "Is a device or a pipe, which no file may replace", str(path))


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` to write into; it takes the name `path` when the block ends well.

    A folder that lies at `path` is replaced as a whole; an empty block leaves nothing there. Errors are as in
    `replacing`. No system call replaces a folder: a process that dies between two leaves the old one beside `path`, and
    `clear_half_written` puts it back.
    """
    with naming(path):
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield temporary
            before = temporary.with_suffix(".old")
            if path.is_dir():
                os.replace(path, before)
            if any(temporary.iterdir()):
                os.chmod(temporary, 0o777 & ~_umask())
                os.replace(temporary, path)
            shutil.rmtree(before, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def move_aside(path: Path, temporary: Path) -> Path | None:
    """Make room where a file takes the place of a folder, or the other way round, which `replacing` and
    `replacing_folder` refuse; for the end of their block.

    Args:
        path: of theirs.
        temporary: what they gave.

    Returns:
        Where the old thing is, to be removed when the new one is in its place: until then `clear_half_written` would
        put it back. None where there is nothing in the way.
    """
    if not path.exists() or path.is_dir() == temporary.is_dir():
        return None
    before = temporary.with_suffix(".old")
    os.replace(path, before)
    return before


def clear_half_written(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder, and put back what they were about to replace."""
    for path in list(folder.rglob(".*.old")):
        if (found := _REPLACED.fullmatch(path.name)) and not (target := path.with_name(found[1])).exists():
            os.replace(path, target)
        elif found:
            remove(path)
    for path in list(folder.rglob(".*.tmp")):
        remove(path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise a system error of the block as an `OSError` that names `path`, whichever library has met it, unless it is
    about another file."""
    try:
        yield
    except ImpresaError:
        raise
    except Exception as error:
        found = system_error(error)
        if found is None:
            raise
        about = str(path if found.filename is None else found.filename)
        raise OSError(found.errno, found.strerror, str(path) if f".{path.name}." in about else about) from error


def _umask() -> int:
    with _READING_UMASK:
        mask = os.umask(0)
        os.umask(mask)
        return mask
