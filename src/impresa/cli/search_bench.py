"""Measure each dimension and shortlist of an index against exact search, and keep the fastest with enough recall.

Queries are captions of the index, where it has some, and its own vectors; recall is the share of the exact ten nearest
that are found, for the kind of query with less. Bytes are those of the vectors that a query reads. `impresa search`
uses what is kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from impresa.cli.options import add_device, checked_device, count, fraction
from impresa.foreign_text import json_text, printable

if TYPE_CHECKING:
    from impresa.search.bench import Bench, Measured


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="index that `impresa index` printed")
    what = "required recall of the exact ten nearest, from 0 to 1 (default: %(default)s)"
    parser.add_argument("--recall", type=fraction, default=0.99, metavar="R", help=what)
    what = "queries of each kind (default: %(default)s)"
    parser.add_argument("--queries", type=count, default=256, metavar="N", help=what)
    parser.add_argument("--run", type=Path, metavar="RUN", help="where the run is, if it has been moved")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    add_device(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Measure, print the figures, and keep what was chosen."""
    from impresa.search.bench import measure
    from impresa.search.index import open_index
    from impresa.tasks.samples import progress_bar

    index = open_index(args.index, run=args.run, device=checked_device(args.device) if args.device else None)
    with progress_bar(sys.stderr.isatty()) as bar:
        found = measure(index, args.recall, num_queries=args.queries, bar=bar)
    index.keep(found.chosen.funnel)
    if args.json:
        kept = found.ways.index(found.chosen)
        print(json_text({"queries": found.num_queries, "kept": kept, "ways": list(map(_plain, found.ways))}))
    else:
        _print_table(found, args.recall)


def _plain(way: Measured) -> dict[str, object]:
    dim, shortlist = (None, None) if way.funnel is None else (way.funnel.dim, way.funnel.shortlist)
    figures = {"recall": way.recall, "latency_s": way.latency_s, "queries_per_s": way.queries_per_s}
    return {"dim": dim, "shortlist": shortlist, **figures, "bytes": way.num_bytes}


def _print_table(found: Bench, recall: float) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in ("dim", "shortlist", "recall@10", "latency", "queries/s", "MB/query", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for way in found.ways:
        dim, size = ("exact", "") if way.funnel is None else (str(way.funnel.dim), str(way.funnel.shortlist))
        figures = (f"{way.recall:.4f}", f"{way.latency_s * 1e3:.1f} ms", f"{way.queries_per_s:,.0f}")
        cells = (dim, size, *figures, f"{way.num_bytes / 1e6:,.2f}", "kept" if way is found.chosen else "")
        table.add_row(*map(Text, cells), style="bold" if way is found.chosen else "")
    Console().print(table)
    kinds = " and ".join(f"{number} of {kind}" for kind, number in found.num_queries.items())
    print(printable(f"{kinds} as queries; the fastest with a recall of {recall:g} or more is kept"))
