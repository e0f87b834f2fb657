"""`impresa data fetch`: the pictures of a table of addresses, into tar shards."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from impresa.cli.options import count, non_negative
from impresa.config.dataset import DatasetConfig
from impresa.config.paths import expanded
from impresa.errors import DataError
from impresa.foreign_text import json_text, printable

if TYPE_CHECKING:
    from rich.console import Console

    from impresa.data.fetch.ledger import Counts, Retry
    from impresa.data.fetch.report import Report
    from impresa.data.fetch.run import Settings

_EXTRA = "'impresa[fetch]'"
_MOST_HOSTS = 10
_LINE_S = 60.0
"""Between lines of progress where there is no terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Fetch the pictures of a table of addresses into tar shards that training reads. The same command continues "
        "after any interruption."
    )
    parser.add_argument(
        "table", metavar="TABLE", help="parquet files, csv, tsv or JSON lines, with a column of addresses"
    )
    parser.add_argument("--out", metavar="SHARDS", required=True, help="folder of the shards and of the ledger")
    parser.add_argument("--url-column", metavar="NAME", help="column of the addresses (default: found by its content)")
    parser.add_argument("--caption-column", metavar="NAME", help="column of the captions (default: the same)")
    parser.add_argument("--sha256-column", metavar="NAME", help="column of the files' hashes (default: the same)")
    parser.add_argument("--retry-failed", action="store_true", help="retry transient failures (5xx, timeouts)")
    parser.add_argument("--retry-all", action="store_true", help="retry all failures, 404 and the like too")
    parser.add_argument("--tries", metavar="N", type=count, default=3, help="tries per address (default: %(default)s)")
    parser.add_argument(
        "--connections", metavar="N", type=count, default=64, help="connections at once (default: %(default)s)"
    )
    parser.add_argument(
        "--per-host", metavar="N", type=count, default=8, help="connections per host (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout", metavar="S", type=_seconds, default=60.0, help="seconds for a picture (default: %(default)g)"
    )
    what = "slower downloads are aborted (default: %(default)g)"
    parser.add_argument("--min-speed", metavar="BYTES/S", type=non_negative, default=1024.0, help=what)
    parser.add_argument(
        "--max-mib", metavar="N", type=count, default=32, help="MiB of a picture at most (default: %(default)s)"
    )
    pixels = DatasetConfig.max_image_pixels
    parser.add_argument(
        "--max-pixels",
        metavar="N",
        type=count,
        default=pixels,
        help="pixels of a picture at most (default: %(default)s)",
    )
    parser.add_argument(
        "--shard-mib", metavar="N", type=count, default=256, help="MiB of a shard (default: %(default)s)"
    )
    parser.add_argument(
        "--user-agent", metavar="TEXT", help="user agent to send; some servers require a contact address"
    )
    what = "allow private addresses, such as those of the local network, which are refused otherwise"
    parser.add_argument("--allow-private", action="store_true", help=what)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> None:
    """Fetch, and print what became of the table."""
    from impresa.hub import import_optional

    import_optional("data fetch", "aiohttp", _EXTRA)
    from impresa.data.fetch.run import fetch
    from impresa.data.fetch.table import open_addresses

    columns = {name: getattr(args, name) for name in ("url_column", "caption_column", "sha256_column")}
    table = open_addresses(args.table, **columns)
    retry: Retry = "all" if args.retry_all else "passing" if args.retry_failed else "none"
    with _Progress() as progress:
        try:
            report = fetch(table, expanded(args.out), _settings(args), retry=retry, show=progress.show)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
            raise
    if args.json:
        print(json_text(report.to_dict()))
    else:
        _print(args.table, report)
    if not report.counts.done:
        raise DataError(
            f"{args.table}: none of {report.counts.num_urls} pictures could be fetched; see the reasons above"
        )
    if not args.json:
        print(printable(args.out))


def _settings(args: argparse.Namespace) -> Settings:
    from impresa.data.fetch.download import Bounds
    from impresa.data.fetch.run import Settings

    bounds = Bounds(
        max_bytes=args.max_mib << 20,
        max_pixels=args.max_pixels,
        timeout_s=args.timeout,
        min_bytes_per_s=args.min_speed,
        allow_private=args.allow_private,
    )
    return Settings(
        bounds=bounds,
        num_connections=args.connections,
        per_host=args.per_host,
        max_tries=args.tries,
        max_shard_bytes=args.shard_mib << 20,
        user_agent=args.user_agent,
    )


def _seconds(text: str) -> float:
    found: float = non_negative(text)
    if found < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1")
    return found


class _Progress:
    """How far a fetch has come, on standard error: a bar on a terminal, else a line a minute."""

    def __init__(self) -> None:
        from impresa.tasks.samples import progress_bar

        self._is_shown = sys.stderr.isatty()
        self._bar = progress_bar(self._is_shown)
        self._task = self._bar.add_task("fetching", total=None)
        self._begun = self._said = time.monotonic()
        self._before: int | None = None

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, counts: Counts) -> None:
        ended = counts.num_urls - counts.waiting
        failed = counts.passing + counts.permanent
        self._before = ended if self._before is None else self._before
        if self._is_shown:
            self._bar.update(
                self._task, completed=ended, total=counts.num_urls, description=f"fetching, {failed} failed"
            )
        now = time.monotonic()
        if self._is_shown or now - self._said < _LINE_S:
            return
        self._said = now
        speed = max(ended - self._before, 1) / (now - self._begun)
        left = timedelta(seconds=round(counts.waiting / speed))
        text = f"{ended} of {counts.num_urls} addresses, {failed} failed, {speed:.0f} a second, about {left} left"
        print(text, file=sys.stderr, flush=True)


def _print(path: str, report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    counts = report.counts
    table = Table(title=printable(path), show_header=False, title_justify="left")
    table.add_row("rows", f"{counts.num_rows}")
    table.add_row("rows fetched", f"{counts.num_rows_fetched}")
    if counts.num_rows_without_address:
        table.add_row("rows unread or without address", f"{counts.num_rows_without_address}")
    if counts.num_rows_of_another_hash:
        table.add_row("rows of another hash", f"{counts.num_rows_of_another_hash}")
    table.add_row("addresses", f"{counts.num_urls}")
    table.add_row("fetched", f"{counts.done}")
    table.add_row("failed, may pass", f"{counts.passing}")
    table.add_row("failed for good", f"{counts.permanent}")
    table.add_row("requests", f"{report.num_tries}")
    console.print(table)
    for kind, title in (("passing", "failures that may pass (--retry-failed)"), ("permanent", "failures for good")):
        _print_list(console, title, [f"{reason}: {number}" for reason, number in report.by_reason(kind).most_common()])
    hosts = [
        f"{host}: {reasons.total()} ({', '.join(f'{reason} {number}' for reason, number in reasons.most_common(3))})"
        for host, reasons in report.by_host()
        if host  # an address may have none
    ]
    rest = [f"and {len(hosts) - _MOST_HOSTS} more; --json has them"] if len(hosts) > _MOST_HOSTS else []
    _print_list(console, "hosts of failures", [*hosts[:_MOST_HOSTS], *rest])


def _print_list(console: Console, title: str, lines: list[str]) -> None:
    if lines:
        console.print("\n  ".join([f"\n{title}", *map(printable, lines)]))
