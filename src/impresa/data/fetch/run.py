"""The fetch itself: addresses that wait in the ledger are downloaded, looked at, written, and noted."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp

from impresa.data.fetch.content import picture_of
from impresa.data.fetch.download import Bounds, download, open_session
from impresa.data.fetch.failure import Failure
from impresa.data.fetch.ledger import NAME, Counts, Job, Ledger, Place, Retry
from impresa.data.fetch.report import Report
from impresa.data.fetch.schedule import Schedule
from impresa.data.fetch.shards import add_picture, open_writer
from impresa.data.fetch.summary import Summary, write_summary
from impresa.data.fetch.table import Table
from impresa.errors import DataError
from impresa.files import naming
from impresa.run_dir.lock import locked

logger = logging.getLogger(__name__)

_BUSY = "is being fetched into{}; wait for it, or choose another --out"
_WINDOW = 4000
"""Addresses in memory that wait."""
_TELL_S = 5.0
"""Between writes of the summary, before which all is put on the disk."""
_LONGEST_BACKOFF_S = 60.0
_MOST_UNANSWERED, _OF_HOSTS = 200, 10
"""Requests in a row that nobody answers, and the hosts that they must go to, before the network is taken for down."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a fetch goes about it."""

    bounds: Bounds
    num_connections: int = 64
    """Requests at once."""
    per_host: int = 8
    """Of them, to one host."""
    max_tries: int = 3
    """Requests for one address before it is given up, where another may help."""
    backoff_s: float = 1.0
    """Wait before the second of them, twice as long before each further one, less a random part."""
    max_shard_bytes: int = 256 << 20
    user_agent: str | None = None


def fetch(
    table: Table,
    folder: Path,
    settings: Settings,
    *,
    retry: Retry = "none",
    show: Callable[[Counts], None] = lambda counts: None,
) -> Report:
    """Fetch the pictures of a table into shards, or go on with it.

    Args:
        table: names the pictures.
        folder: of the shards and the ledger: new, empty, or that of an earlier fetch of this table.
        settings: bounds, and requests at once.
        retry: addresses of an earlier round that are tried again.
        show: is told the counts as they change.

    Raises:
        DataError: the folder holds other files or another table, or the network is down.
        CheckpointError: another process is at work in the folder.
        OSError: a file cannot be written, such as on a full disk; the same call goes on from there.
        KeyboardInterrupt: the user stopped it; the same.
    """
    _check_folder(folder)
    with locked(folder, _BUSY):
        ledger = Ledger(folder)
        try:
            with ledger.naming():
                ledger.take_in(table.rows(), f"{table.digest()} {table.columns}")
                ledger.retry(retry)
                asyncio.run(_Fetch(folder, ledger, settings, show).run())
                return Report(ledger.counts(), ledger.num_tries(), ledger.failures())
        finally:
            ledger.close()


def _check_folder(folder: Path) -> None:
    with naming(folder):
        if (
            folder.exists()
            and not (folder / NAME).exists()
            and not all(file.name.startswith(".") for file in folder.iterdir())
        ):
            raise DataError(f"{folder}: holds other files, and no fetch was begun there; name a new folder with --out")


class _Fetch:
    """One call of `fetch`, within its event loop."""

    def __init__(self, folder: Path, ledger: Ledger, settings: Settings, show: Callable[[Counts], None]) -> None:
        self._folder, self._ledger, self._settings, self._show = folder, ledger, settings, show
        self._schedule = Schedule(settings.per_host)
        self._writer = open_writer(folder, ledger, settings.max_shard_bytes)
        self._end = ledger.last_place() or Place(0, 0)
        self._counts = ledger.counts()
        self._num_rows_whole = ledger.num_rows_before(self._writer.number)
        """Of the fetched ones those in whole shards: no training sees the others before the fetch goes on."""
        self._last_taken = ""
        self._all_taken = False
        self._num_active = 0
        self._changed = asyncio.Event()
        self._told = time.monotonic()
        self._unanswered: list[str] = []
        """Hosts of the last requests, as long as nobody has answered."""

    async def run(self) -> None:
        """Work until nothing waits; whatever ends it, all that was fetched is in whole shards."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32))  # names of dead hosts take long
        settings = self._settings
        self._tell()
        try:
            async with open_session(settings.bounds, settings.num_connections, settings.user_agent) as session:
                await self._drive(session)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            self._writer.close()
            self._num_rows_whole = self._counts.num_rows_fetched
            self._tell()

    async def _drive(self, session: aiohttp.ClientSession) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._refill()
                now = time.monotonic()
                while self._num_active < self._settings.num_connections and (job := self._schedule.take(now)):
                    self._num_active += 1
                    tasks.create_task(self._handle(session, job))
                if not self._num_active and not self._schedule.num_waiting and self._all_taken:
                    return
                self._changed.clear()
                wakes_at = self._schedule.wakes_at()
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if wakes_at is None else max(wakes_at - now, 0.001)):
                        await self._changed.wait()

    def _refill(self) -> None:
        if self._all_taken or self._schedule.num_waiting > _WINDOW // 2:
            return
        jobs = self._ledger.waiting(self._last_taken, _WINDOW)
        self._all_taken = len(jobs) < _WINDOW
        for job in jobs:
            self._last_taken = job.id
            self._schedule.add(job)

    async def _handle(self, session: aiohttp.ClientSession, job: Job) -> None:
        try:
            if (given_up := self._schedule.host(job.host).given_up) is not None:
                self._note(job, Failure(given_up, passing=True), "passing", num_tries=0)
            else:
                await self._try(session, job)
        finally:
            self._num_active -= 1
            self._schedule.ended(job)
            self._changed.set()
        self._show(self._counts)
        if time.monotonic() - self._told > _TELL_S:
            self._tell()

    async def _try(self, session: aiohttp.ClientSession, job: Job) -> None:
        try:
            content = await download(session, job.url, self._settings.bounds)
            self._keep(job, content)
        except Failure as failure:
            self._after(job, failure)
        else:
            self._schedule.answered(job)
            self._unanswered.clear()

    def _keep(self, job: Job, content: bytes) -> None:
        """Write a picture, then note it: a process that is killed in between has only bytes behind the last place."""
        picture = picture_of(content, self._settings.bounds.max_pixels)
        rows = self._ledger.rows_of(job.id)
        right = [cells for cells, sha256 in rows if sha256 in (None, picture.sha256)]
        if not right:
            raise Failure("another file than the table's sha256 tells")
        begin, end = add_picture(self._writer, job.id, picture, right)
        self._ledger.note_done(job.id, len(content), picture.sha256, begin, end)
        is_another, self._end = end.shard != self._end.shard, end
        if is_another:
            self._num_rows_whole = self._counts.num_rows_fetched
            self._tell()  # a loss of power never costs more than this shard
        self._counts.waiting -= 1
        self._counts.done += 1
        self._counts.num_rows_fetched += len(right)

    def _after(self, job: Job, failure: Failure) -> None:
        """What follows from a failure: for its host, for the whole fetch, and for the address."""
        now, backoff_s, tries = time.monotonic(), self._settings.backoff_s, job.tries + 1
        self._schedule.failed(job, failure, now, backoff_s)
        is_last = tries >= self._settings.max_tries or self._schedule.host(job.host).given_up is not None
        self._note(job, failure, ("passing" if is_last else "waiting") if failure.passing else "permanent")
        if failure.passing and not is_last:
            wait_s = min(backoff_s * 2 ** (tries - 1), _LONGEST_BACKOFF_S) * random.uniform(0.5, 1)
            self._schedule.add(replace(job, tries=tries), now + wait_s)
        if not failure.is_connection:
            self._unanswered.clear()
            return
        self._unanswered.append(job.host)
        num_hosts = len(set(self._unanswered))
        if len(self._unanswered) >= _MOST_UNANSWERED and num_hosts >= _OF_HOSTS:
            fault = f"nobody has answered the last {len(self._unanswered)} requests, to {num_hosts} hosts"
            raise DataError(f"{self._folder}: {fault}; is the network up? The same command goes on")

    def _note(self, job: Job, failure: Failure, status: str, num_tries: int = 1) -> None:
        self._ledger.note_failed(job.id, failure.reason, status, num_tries)
        if status != "waiting":
            self._counts.waiting -= 1
            setattr(self._counts, status, getattr(self._counts, status) + 1)

    def _tell(self) -> None:
        """Put all on the disk, and say beside the shards how far it has come."""
        self._writer.sync()
        self._ledger.note_synced(self._end)
        write_summary(self._folder, Summary(self._counts.num_rows, self._num_rows_whole))
        self._told = time.monotonic()
