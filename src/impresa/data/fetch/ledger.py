"""What is known of each address of a table, in a SQLite file beside the shards: the truth of a fetch.

An address is one row of `urls`, under the first 96 bits of a hash of it: their order spreads the addresses of a host
over the whole fetch. The rows of the table lie under the same name. Each change is a transaction of its own that a
killed process cannot take back; a machine that loses its power may lose the last of them, see `note_synced`.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from impresa.data.fetch.table import TableRow
from impresa.errors import DataError

NAME = "fetch.sqlite"
_FORMAT = "1"
_AT_ONCE = 10_000
"""Rows of the table in a transaction."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_OF_THE_DISK = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_IOERR: errno.EIO}
"""SQLite's names of the system's errors."""
_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS urls (
    id TEXT PRIMARY KEY,
    url TEXT NOT NULL,
    host TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'waiting', -- done, waiting, passing (all its tries failed), permanent
    tries INTEGER NOT NULL DEFAULT 0,
    earlier_tries INTEGER NOT NULL DEFAULT 0, -- of rounds before the last --retry-failed
    reason TEXT NOT NULL DEFAULT '', -- of the last failure
    bytes INTEGER,
    sha256 TEXT,
    shard INTEGER, -- number of the shard that its first sample is in
    offset INTEGER,
    end_shard INTEGER, -- where its last sample ends
    end_offset INTEGER
);
CREATE TABLE IF NOT EXISTS rows (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL, -- of the address
    cells TEXT NOT NULL,
    sha256 TEXT
);
"""
_INDEXES = """
CREATE INDEX IF NOT EXISTS waiting ON urls (id) WHERE status = 'waiting';
CREATE INDEX IF NOT EXISTS rows_by_id ON rows (id);
"""
"""Made when the tables are full, which takes less time."""
_CACHE_KIB = 64 << 10
_GONE = (
    "status = 'waiting', bytes = NULL, sha256 = NULL, shard = NULL, offset = NULL, end_shard = NULL, end_offset = NULL"
)
_NO_SHARD = 2**63 - 1
"""A number above those of all shards."""
_FETCHED = "u.status = 'done' AND (r.sha256 IS NULL OR r.sha256 = u.sha256)"

Retry = Literal["none", "passing", "all"]
"""Which of the addresses that have failed are tried again."""


@dataclass(frozen=True, slots=True)
class Job:
    """An address to fetch."""

    id: str
    url: str
    host: str
    tries: int
    """Made already in this round."""


@dataclass(frozen=True)
class Place:
    """Where in the shards something ends or begins."""

    shard: int
    offset: int


@dataclass
class Counts:
    """Addresses by what became of them, and the rows of the table that they stand for."""

    num_rows: int
    """With an address or without."""
    num_rows_fetched: int
    num_rows_without_address: int
    num_rows_of_another_hash: int
    """Their picture was fetched, for another row, and is not the one that the table's sha256 tells."""
    done: int = 0
    waiting: int = 0
    passing: int = 0
    permanent: int = 0

    @property
    def num_urls(self) -> int:
        return self.done + self.waiting + self.passing + self.permanent


class FailureCount(NamedTuple):
    """Addresses of a host that have failed for a reason."""

    status: str
    reason: str
    host: str
    number: int


class Ledger:
    """The ledger in a folder of shards. One process at a time has it open.

    Raises:
        DataError: the file is damaged, or was written by another version.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        try:
            self._file = sqlite3.connect(self.path, isolation_level=None)
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = NORMAL")
            self._file.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            self._file.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            raise self._fault(error) from error
        if (found := self._fact("format")) not in (None, _FORMAT):
            raise DataError(f"{self.path}: has format {found}, and this version writes {_FORMAT}; choose another --out")

    def _fault(self, error: sqlite3.Error) -> DataError:
        return DataError(f"{self.path}: the ledger cannot be used ({error}); choose another --out")

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Raise errors of SQLite in the block as one line."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if (number := _OF_THE_DISK.get(code)) is not None:
                raise OSError(number, os.strerror(number), str(self.path)) from error
            raise self._fault(error) from error

    def close(self) -> None:
        self._file.close()

    def note_synced(self, place: Place) -> None:
        """Note that the shards are on the disk up to a place, and put the ledger there too."""
        fact = ("synced", f"{place.shard} {place.offset} {_boot()}")
        self._file.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", fact)
        self._file.execute("PRAGMA wal_checkpoint(FULL)")

    def forget_unsynced(self) -> int:
        """After a start of the machine, let wait what may not have reached the disk; returns the number of addresses.

        A killed process alone loses nothing: the system has what it has written.
        """
        shard, offset, boot = (self._fact("synced") or "0 0 ").split(" ", 2)
        if boot and boot == _boot():
            return 0
        where = "status = 'done' AND (end_shard > ? OR (end_shard = ? AND end_offset > ?))"
        return self._file.execute(f"UPDATE urls SET {_GONE} WHERE {where}", (shard, shard, offset)).rowcount

    def _fact(self, name: str) -> str | None:
        found = self._file.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if found is None else str(found[0])

    def take_in(self, rows: Iterable[TableRow], table: str) -> None:
        """Note all rows of a table, unless they are noted already.

        Args:
            rows: of the table.
            table: a word that tells the table, and how it is read, from others.

        Raises:
            DataError: the ledger is that of another table.
        """
        if self._fact("complete") is not None:
            if self._fact("table") != table:
                fix = "choose another --out, or the table and the columns that it was begun with"
                raise DataError(f"{self.path.parent}: was fetched from another table, or with other columns; {fix}")
            return
        for name in ("urls", "rows", "facts"):  # what a killed process has begun
            self._file.execute(f"DELETE FROM {name}")
        without, total, numbered = 0, 0, enumerate(rows)
        while some := list(islice(numbered, _AT_ONCE)):
            named = [(_id(row.url), number, row) for number, row in some if row.url is not None]
            total, without = total + len(some), without + len(some) - len(named)
            with self._transaction():
                urls = ((id, row.url, _host(row.url or "")) for id, _, row in named)
                self._file.executemany("INSERT OR IGNORE INTO urls (id, url, host) VALUES (?, ?, ?)", urls)
                cells = ((number, id, row.cells, row.sha256) for id, number, row in named)
                self._file.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", cells)
        self._file.executescript(_INDEXES)
        facts = {"format": _FORMAT, "table": table, "rows": total, "without": without, "complete": 1}
        with self._transaction():
            self._file.executemany("INSERT INTO facts VALUES (?, ?)", [(k, str(v)) for k, v in facts.items()])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._file.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._file.execute("ROLLBACK")
            raise
        self._file.execute("COMMIT")

    def waiting(self, after: str, most: int) -> list[Job]:
        """Up to so many addresses that wait, in order, behind one id."""
        query = "SELECT id, url, host, tries - earlier_tries FROM urls WHERE status = 'waiting' AND id > ? ORDER BY id"
        return [Job(*found) for found in self._file.execute(f"{query} LIMIT ?", (after, most))]

    def rows_of(self, id: str) -> list[tuple[str, str | None]]:
        """Cells, as JSON, and expected hash of the table's rows with an address, in order."""
        return list(self._file.execute("SELECT cells, sha256 FROM rows WHERE id = ? ORDER BY number", (id,)))

    def note_done(self, id: str, num_bytes: int, sha256: str, begin: Place, end: Place) -> None:
        """A picture lies in the shards, between two places."""
        places = (begin.shard, begin.offset, end.shard, end.offset)
        self._file.execute(
            "UPDATE urls SET status = 'done', reason = '', tries = tries + 1, bytes = ?, sha256 = ?, shard = ?, "
            "offset = ?, end_shard = ?, end_offset = ? WHERE id = ?",
            (num_bytes, sha256, *places, id),
        )

    def note_failed(self, id: str, reason: str, status: str, num_tries: int) -> None:
        """A try has failed, or was not made; `status` is what follows from it: waiting, passing or permanent."""
        query = "UPDATE urls SET status = ?, reason = ?, tries = tries + ? WHERE id = ?"
        self._file.execute(query, (status, reason, num_tries, id))

    def retry(self, which: Retry) -> None:
        """Let addresses that have failed wait for more tries."""
        kinds: Sequence[str] = {"none": (), "passing": ("passing",), "all": ("passing", "permanent")}[which]
        for kind in kinds:
            self._file.execute("UPDATE urls SET status = 'waiting', earlier_tries = tries WHERE status = ?", (kind,))

    def last_place(self) -> Place | None:
        """The end of what has been written last; None before that."""
        query = "SELECT end_shard, end_offset FROM urls WHERE status = 'done' ORDER BY end_shard DESC, end_offset DESC"
        found = self._file.execute(f"{query} LIMIT 1").fetchone()
        return None if found is None else Place(*found)

    def shards(self) -> list[int]:
        """Numbers of all shards that hold something."""
        query = "SELECT shard FROM urls WHERE status = 'done' UNION SELECT end_shard FROM urls WHERE status = 'done'"
        return sorted(number for (number,) in self._file.execute(query))

    def forget(self, shard: int) -> int:
        """Let wait what lies in a shard; returns the number of addresses."""
        where = "status = 'done' AND ? IN (shard, end_shard)"
        return self._file.execute(f"UPDATE urls SET {_GONE} WHERE {where}", (shard,)).rowcount

    def counts(self) -> Counts:
        by_status = dict(self._file.execute("SELECT status, count(*) FROM urls GROUP BY status"))
        fetched = self.num_rows_before(_NO_SHARD)
        join = "SELECT count(*) FROM urls u JOIN rows r ON r.id = u.id WHERE u.status = 'done' AND r.sha256 != u.sha256"
        of_another_hash = int(self._file.execute(join).fetchone()[0])
        num_rows, without = (int(self._fact(name) or 0) for name in ("rows", "without"))
        return Counts(num_rows, fetched, without, of_another_hash, **by_status)

    def num_rows_before(self, shard: int) -> int:
        """Rows of the table whose pictures lie in shards before one of a number."""
        join = f"SELECT count(*) FROM urls u JOIN rows r ON r.id = u.id WHERE {_FETCHED} AND u.end_shard < ?"
        return int(self._file.execute(join, (shard,)).fetchone()[0])

    def num_tries(self) -> int:
        """Requests so far, redirects not counted."""
        return int(self._file.execute("SELECT total(tries) FROM urls").fetchone()[0])

    def failures(self) -> list[FailureCount]:
        """Failed addresses by kind, reason and host, the most frequent first."""
        query = (
            "SELECT status, reason, host, count(*) AS n FROM urls WHERE reason != '' "
            "GROUP BY status, reason, host ORDER BY n DESC, status, reason, host"
        )
        return [FailureCount(*found) for found in self._file.execute(query)]


def _boot() -> str:
    """A word for this start of the machine; empty where it has none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _id(url: str | None) -> str:
    return blake2b((url or "").encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
