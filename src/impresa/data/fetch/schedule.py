"""Whose turn it is: addresses by host, a bound on requests to each at once, and waiting where a host asks for it."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from itertools import count

from impresa.data.fetch.failure import Failure
from impresa.data.fetch.ledger import Job

_LONGEST_PAUSE_S = 300.0
"""A host that wants us to wait longer is left for another day."""
_MOST_IN_A_ROW = 20
"""Requests to a host that nobody answers before the others are not made."""
_STEADY = 16
"""Answers in a row after which a host that has refused some may have one request more at once."""


@dataclass
class Host:
    """The addresses of one host that wait, and how it behaves."""

    limit: int
    """Requests at once, less where it has refused some."""
    waiting: deque[Job] = field(default_factory=deque)
    num_active: int = 0
    paused_until: float = 0.0
    num_later: int = 0
    """Jobs that wait for a time."""
    is_queued: bool = False
    num_refusals: int = 0
    """In a row."""
    num_answers: int = 0
    """In a row."""
    num_unanswered: int = 0
    """In a row."""
    given_up: str | None = None
    """Reason why it is asked nothing more."""

    @property
    def is_troubled(self) -> bool:
        return bool(self.given_up or self.num_refusals or self.num_unanswered)


class Schedule:
    """Jobs that wait, served host by host in turn. Times are seconds of any clock that only goes forward.

    Args:
        per_host: requests to a host at once.
    """

    def __init__(self, per_host: int) -> None:
        self._per_host = per_host
        self._hosts: dict[str, Host] = {}
        self._ready: deque[Host] = deque()
        self._later: list[tuple[float, int, Host, Job | None]] = []
        self._number = count()
        self.num_waiting = 0

    def host(self, name: str) -> Host:
        if name not in self._hosts:
            self._hosts[name] = Host(self._per_host)
        return self._hosts[name]

    def add(self, job: Job, due: float = 0.0) -> None:
        """Let a job wait, until a time at least."""
        host = self.host(job.host)
        self.num_waiting += 1
        if due:
            host.num_later += 1
            heapq.heappush(self._later, (due, next(self._number), host, job))
        else:
            host.waiting.append(job)
            self._queue(host)

    def take(self, now: float) -> Job | None:
        """A job whose turn it is; its host must be told of the result."""
        while self._later and self._later[0][0] <= now:
            _, _, host, job = heapq.heappop(self._later)
            if job is not None:
                host.num_later -= 1
                host.waiting.append(job)
            self._queue(host)
        while self._ready:
            host = self._ready.popleft()
            host.is_queued = False
            if host.num_active >= host.limit:
                continue
            if host.paused_until > now and host.given_up is None:
                heapq.heappush(self._later, (host.paused_until, next(self._number), host, None))
                continue
            job = host.waiting.popleft()
            host.num_active += 1
            self.num_waiting -= 1
            self._queue(host)
            return job
        return None

    def wakes_at(self) -> float | None:
        """When a job may have its turn though none has ended until then."""
        return self._later[0][0] if self._later else None

    def answered(self, job: Job) -> None:
        """The host of a job has given what it has."""
        host = self.host(job.host)
        host.num_unanswered = host.num_refusals = 0
        host.num_answers += 1
        if host.num_answers % _STEADY == 0:
            host.limit = min(host.limit + 1, self._per_host)

    def failed(self, job: Job, failure: Failure, now: float, pause_s: float) -> None:
        """A request has failed; a host that has refused it is left alone as long as it asks, or for twice `pause_s` and
        longer each time."""
        host = self.host(job.host)
        if failure.is_connection:
            host.num_unanswered += 1
            if host.num_unanswered >= _MOST_IN_A_ROW:
                host.given_up = "host does not answer"
            return
        host.num_unanswered = 0
        if failure.reason != "HTTP 429" and failure.retry_after_s is None:
            return
        host.num_answers = 0
        host.limit = max(host.limit // 2, 1)
        host.num_refusals += 1
        wait_s = pause_s * 2 ** min(host.num_refusals, 6) if failure.retry_after_s is None else failure.retry_after_s
        if wait_s > _LONGEST_PAUSE_S:
            host.given_up = "host asks to wait for more than 5 minutes"
        host.paused_until = max(host.paused_until, now + wait_s)

    def ended(self, job: Job) -> None:
        """A job that was taken is no longer under way."""
        host = self.host(job.host)
        host.num_active -= 1
        self._queue(host)
        if not (host.waiting or host.num_active or host.num_later or host.is_troubled):
            del self._hosts[job.host]  # there may be millions

    def _queue(self, host: Host) -> None:
        if host.waiting and not host.is_queued and host.num_active < host.limit:
            host.is_queued = True
            self._ready.append(host)
