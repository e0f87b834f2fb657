"""What became of the addresses of a table: counts, and failures by reason and by host."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from impresa.data.fetch.ledger import Counts, FailureCount

KINDS = ("passing", "permanent")
"""Of failures: another try may help, or not."""
_MOST_HOSTS = 1000


@dataclass(frozen=True)
class Report:
    """What became of a table."""

    counts: Counts
    num_tries: int
    """Requests in all, redirects not counted."""
    failures: list[FailureCount]

    def by_reason(self, kind: str) -> Counter[str]:
        """Failed addresses of a kind by reason."""
        total = Counter[str]()
        for failure in self.failures:
            if failure.status == kind:
                total[failure.reason] += failure.number
        return total

    def by_host(self) -> list[tuple[str, Counter[str]]]:
        """Failed addresses of each host by reason, the host with the most first."""
        hosts: dict[str, Counter[str]] = {}
        for failure in self.failures:
            if failure.status in KINDS:
                hosts.setdefault(failure.host, Counter())[failure.reason] += failure.number
        return sorted(hosts.items(), key=lambda host: (-host[1].total(), host[0]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; of the hosts the first thousand."""
        hosts = [
            {"host": host, "failed": reasons.total(), "reasons": dict(reasons.most_common())}
            for host, reasons in self.by_host()[:_MOST_HOSTS]
        ]
        reasons = {kind: dict(self.by_reason(kind).most_common()) for kind in KINDS}
        counts = {**asdict(self.counts), "num_urls": self.counts.num_urls, "num_tries": self.num_tries}
        return {**counts, "reasons": reasons, "hosts": hosts}
