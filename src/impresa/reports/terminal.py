"""The results of an evaluation for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from impresa.evaluation.results import Evaluation
from impresa.foreign_text import printable
from impresa.reports.tables import MODEL, Table, make_tables, summary, warnings


def print_results(evaluation: Evaluation, console: Console) -> None:
    """Print all tables of an evaluation, and what was wrong with the model or the data."""

    def line(text: str, style: str = "") -> None:
        console.print(Text(printable(text), style=style), soft_wrap=True)

    line(summary(evaluation), "dim")
    for table in make_tables(evaluation):
        console.print(grid_of(table))
        if table.figures:
            line(table.figures)
    for warning in warnings(evaluation):
        line(warning, "yellow")
    if bad := evaluation.bad_samples:
        line(f"bad samples, skipped: {len(bad):,}; the first is {bad[0].id}: {bad[0].reason}", "yellow")


def grid_of(table: Table, *, bold: str = MODEL, wrap: bool = False) -> Grid:
    """A table for the terminal, with the row of the name `bold` in bold; `wrap` breaks what does not fit into lines."""
    grid = Grid(box=None, pad_edge=False)
    grid.add_column(Text(printable(table.title)), no_wrap=not wrap, overflow="fold" if wrap else "ellipsis")
    for label in table.columns:
        grid.add_column(Text(printable(label)), justify="right", no_wrap=not wrap)
    for heading, rows in table.groups.items():
        if heading:
            grid.add_row(Text(heading), style="dim")
        for row in rows:
            name = Text(f"{'  ' if heading else ''}{printable(row.name)}")  # a plain string would be read as markup
            grid.add_row(name, *row.cells, style="bold" if row.name == bold else "")
    return grid
