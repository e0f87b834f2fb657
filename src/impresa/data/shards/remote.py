"""Files at an address, by way of fsspec: `s3://`, `https://` and whatever else it has a file system for."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol, TypeVar

from impresa.config.shard_names import address_name, shown_address
from impresa.errors import DataError
from impresa.foreign_text import printable

_TRIES = 3
_READ_AHEAD = 1 << 20
_VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "Content-MD5",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
    "blob_id",
)
"""Names that file systems give to the version of a file's content."""
_GLOB = "*?["
_QUERY = re.compile(r"\?[^\s'\"]*")
"""Of an address in a message of others: signatures may be in it."""
_GONE = (404, 410)
"""Statuses of a web server that has no such file."""
_PERMANENT = (FileNotFoundError, PermissionError, ImportError, ValueError, DataError)

T = TypeVar("T")


class Reader(Protocol):
    def read(self, num_bytes: int, /) -> bytes: ...


def listed(address: str, suffixes: tuple[str, ...]) -> list[str]:
    """The files of an address that end so: one, those of a pattern, or all in a folder and below it.

    Raises:
        DataError: it cannot be read.
    """
    name = address_name(address)
    has_pattern = any(sign in name for sign in _GLOB)
    if name.lower().endswith(suffixes) and not has_pattern:
        return [address]
    with _naming(address):
        system, path = _system(address)
        found = system.glob(path) if has_pattern else system.find(path)
        return [system.unstrip_protocol(str(one)) for one in sorted(found) if str(one).lower().endswith(suffixes)]


def facts_of(address: str) -> tuple[int | None, str]:
    """Size in bytes, if it is told, and a version of the file at an address.

    Raises:
        DataError: there is none, or it cannot be reached.
    """

    def look() -> tuple[int | None, str]:
        system, path = _system(address)
        facts = system.info(path)
        size = facts.get("size")
        return size, " ".join(str(facts[name]) for name in _VERSIONS if facts.get(name))

    return tried(address, look)


@contextmanager
def opened(address: str) -> Iterator[BinaryIO]:
    """The file at an address, to be read from its beginning to its end."""
    system, path = _system(address)
    streamed: dict[str, Any] = {"block_size": 0} if address.startswith("http") else {}
    with system.open(path, "rb", **streamed) as file:
        yield file


@contextmanager
def opened_anywhere(address: str) -> Iterator[BinaryIO]:
    """The file at an address, of which parts are read in any order and the rest is not fetched."""
    system, path = _system(address)
    with system.open(path, "rb", cache_type="readahead", block_size=_READ_AHEAD) as file:
        yield file


def tried(address: str, work: Callable[[], T]) -> T:
    """The result of some work, which is tried again after errors that may pass.

    Raises:
        DataError: it fails for good.
    """
    with _naming(address):
        for wait_s in range(1, _TRIES):
            try:
                return work()
            except Exception as error:  # each file system raises errors of its own
                if isinstance(_behind(error), _PERMANENT):
                    raise
                time.sleep(wait_s)
        return work()


@contextmanager
def _naming(address: str) -> Iterator[None]:
    """Raise any error of a file system as one line."""
    where = shown_address(address)
    try:
        yield
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f"{where}: a package is missing ({printable(str(error))}); install it") from error
    except Exception as error:  # each file system raises errors of its own
        cause = _behind(error)
        if isinstance(cause, FileNotFoundError):
            raise DataError(f"{where}: there is no such file; name existing files") from error
        reason = printable(_QUERY.sub("", str(cause).replace(address, where)) or type(cause).__name__)[:200]
        raise DataError(f"{where}: cannot be read ({reason}); fix the server or the address") from error


def _behind(error: Exception) -> BaseException:
    """The fault behind an error: fsspec says of any failure of a web server that there is no such file."""
    cause = error.__cause__
    is_another = isinstance(cause, OSError | TimeoutError) or getattr(cause, "status", _GONE[0]) not in _GONE
    return cause if isinstance(error, FileNotFoundError) and cause is not None and is_another else error


def _system(address: str) -> tuple[Any, str]:
    # Asked for anew each time: fsspec keeps one for each process, and none outlives a fork.
    from fsspec.core import url_to_fs

    found: tuple[Any, str] = url_to_fs(address)
    return found
