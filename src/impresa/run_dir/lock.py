"""The lock of a run directory: one training at a time writes into it.

It is the system's lock on an open file, which ends with the process however that dies; its content is for people.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from impresa.errors import CheckpointError
from impresa.files import naming
from impresa.json_files import parse_json
from impresa.run_dir.layout import LOCK

_TRAINED = "is being trained{}; wait for it, or choose another --output-dir"
_BUSY = (errno.EWOULDBLOCK, errno.EACCES)
_held: dict[Path, int] = {}
"""Open lock files of this process by run directory."""


@contextmanager
def locked(run_dir: Path, busy: str = _TRAINED) -> Iterator[None]:
    """Hold the lock of a run directory, which is made if needed. A file system without locks is taken as it is.

    Args:
        run_dir: the directory, or another that one process at a time writes into.
        busy: end of an error line; {} stands for the process that holds the lock.

    Raises:
        CheckpointError: another training holds it.
    """
    with naming(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / LOCK
        handle = _take(path, busy)
    _held[run_dir] = handle
    try:
        yield
    finally:
        if _is_at(handle, path):
            path.unlink(missing_ok=True)
        os.close(_held.pop(run_dir))


def check_lock(run_dir: Path) -> None:
    """Refuse to go on where the directory that this process has locked was deleted, or another is in its place.

    Raises:
        CheckpointError: what was written is gone.
    """
    handle = _held.get(run_dir)
    if handle is not None and not _is_at(handle, run_dir / LOCK):
        raise CheckpointError(
            f"{run_dir}: was deleted while it was trained; nothing is left to resume, so start it anew"
        )


def refuse_running(run_dir: Path) -> None:
    """Raise a `CheckpointError` where another training holds the lock; nothing is written."""
    if run_dir in _held:
        return
    with suppress(OSError):  # there is none, or `locked` will say what is wrong with it
        handle = os.open(run_dir / LOCK, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            _lock(handle, run_dir / LOCK, _TRAINED)
        finally:
            os.close(handle)


def _take(path: Path, busy: str = _TRAINED) -> int:
    """An open lock file that is locked, and is still the one at `path`: its last holder removes it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            _lock(handle, path, busy)
            if _is_at(handle, path):
                with suppress(OSError):  # a full disk, which the first file that matters will tell
                    os.ftruncate(handle, 0)
                    os.write(handle, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int, path: Path, busy: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            raise CheckpointError(f"{path.parent}: {busy.format(_by_whom(path))}") from None


def _by_whom(path: Path) -> str:
    try:
        with path.open("rb") as file:
            holder = parse_json(file.read(1000))
        return f" by process {int(holder['process'])} on {str(holder['host'])[:100]!r}"
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        return ""


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except OSError:
        return False


def _let_go_in_child() -> None:
    """A data worker that outlives the training for some seconds must not hold its lock."""
    for handle in _held.values():
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
