"""Search an index by words, by pictures, by sounds, or by several of them together.

A QUERY is words, or the path of a picture or a sound; several are averaged. Words and examples are weighted: with
--weight 0.5 both count the same. --not takes words or a path as well, and lowers the rank of what is similar.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from impresa.cli.options import add_device, checked_device, count, fraction
from impresa.errors import ConfigError
from impresa.foreign_text import json_text, printable

if TYPE_CHECKING:
    from impresa.search.index import Result
    from impresa.search.query import Query


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="index that `impresa index` printed")
    parser.add_argument("query", nargs="*", metavar="QUERY", help="words, or the path of a picture or a sound")
    for name in ("text", "image", "sound"):
        what = f"{'words' if name == 'text' else f'the path of a {name}'}; may be given several times"
        parser.add_argument(f"--{name}", action="append", default=[], metavar=name.upper(), help=what)
    what = "what the results must not be like: words or a path; may be given several times"
    parser.add_argument("--not", action="append", default=[], dest="without", metavar="QUERY", help=what)
    what = "weight of the words against pictures and sounds, from 0 to 1 (default: %(default)s)"
    parser.add_argument("--weight", type=fraction, default=0.5, metavar="W", help=what)
    parser.add_argument("--top", type=count, default=20, metavar="N", help="results (default: %(default)s)")
    parser.add_argument("--where", metavar="SQL", help="only rows that satisfy a condition, such as \"label = 'cat'\"")
    what = "shortlist by the first N dimensions, and re-rank by all (default: what search-bench has found)"
    parser.add_argument("--dim", type=count, metavar="N", help=what)
    parser.add_argument("--run", type=Path, metavar="RUN", help="where the run is, if it has been moved")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--json", action="store_true", help="print the results as JSON")
    kinds.add_argument("--html", type=Path, metavar="PAGE", help="write a page with thumbnails, and print its name")
    add_device(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Search, and print the results."""
    if not (args.query or args.text or args.image or args.sound):
        raise ConfigError("QUERY: there is nothing to search for; give words, or the path of a picture or a sound")
    from impresa.search.index import open_index
    from impresa.search.query import Query, parts_of

    if args.html is not None and not args.html.absolute().parent.is_dir():
        raise ConfigError(f"--html: {args.html.parent} is no folder; make it, or name a page in another")
    from impresa.search.store import exists

    if not exists(args.index) and (found := next(filter(exists, args.query), None)):
        raise ConfigError(f"INDEX: {args.index} is no index, and {found} is one; name it before what to search for")
    index = open_index(args.index, run=args.run, device=checked_device(args.device) if args.device else None)
    query = parts_of(args.query).joined(Query(args.text, args.image, args.sound, args.without, args.weight))
    results = index.search(query, top=args.top, where=args.where, dim=args.dim)
    if args.json:
        print(json_text([_plain(result) for result in results]))
    elif args.html is not None:
        from impresa.files import write_atomic
        from impresa.search.page import results_page

        write_atomic(args.html, results_page(_title(query), str(index), args.where, results))
        print(args.html)
    else:
        _print_table(results)


def _title(query: Query) -> str:
    """The query in words."""
    parts = " + ".join(map(str, (*query.texts, *query.images, *query.sounds)))
    return " - ".join((parts, *map(str, query.without)))


def _plain(result: Result) -> dict[str, object]:
    return {name: value for name, value in asdict(result).items() if name != "thumbnail"}


def _print_table(results: list[Result]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not results:
        print("no row fulfils the condition")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("rank", "score"):
        table.add_column(name, justify="right", no_wrap=True, min_width=5)
    table.add_column("path", no_wrap=True)  # long captions are cut, which the others would be too
    table.add_column("caption")
    for result in results:
        caption = " / ".join((result.caption or result.label or "").split("\n"))
        path = Text(printable(result.path or result.id), no_wrap=False, overflow="fold")
        shown = Text(printable(caption), no_wrap=True, overflow="ellipsis")
        table.add_row(str(result.rank), f"{result.score:.3f}", path, shown)
    Console().print(table)
