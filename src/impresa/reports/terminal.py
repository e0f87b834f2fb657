"""The results of an evaluation for the terminal."""

from __future__ import annotations

from functools import partial

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from impresa.evaluation.comparison import Comparison
from impresa.evaluation.results import Evaluation
from impresa.foreign_text import printable
from impresa.reports.comparison import comparison_tables, letter, reading
from impresa.reports.tables import MODEL, Table, interval_note, make_tables, summary, warnings

_WIDEST = 1000
"""Columns that a table may have at most."""


def print_results(evaluation: Evaluation, console: Console) -> None:
    """Print all tables of an evaluation, and what was wrong with the model or the data."""
    line = partial(_line, console)
    line(summary(evaluation), "dim")
    tables = make_tables(evaluation)
    for table in tables:
        print_table(console, table)
        if table.figures:
            line(table.figures)
        if table.footnote:
            line(table.footnote, "dim")
    if note := interval_note(tables):
        line(note, "dim")
    for warning in warnings(evaluation):
        line(warning, "yellow")
    if bad := evaluation.bad_samples:
        line(f"bad samples, skipped: {len(bad):,}; the first is {bad[0].id}: {bad[0].reason}", "yellow")


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print runs side by side."""
    line = partial(_line, console)
    line(f"{comparison.data}: {comparison.num_items:,} images", "dim")
    for place, run in enumerate(comparison.runs):
        line(f"{letter(place)}  {run}")
    for table in comparison_tables(comparison):
        print_table(console, table, gap=1)
    line(reading(comparison), "dim")


def grid_of(table: Table, *, bold: str = MODEL, wrap: bool = False, gap: int = 2) -> Grid:
    """A table for the terminal, with the row of the name `bold` in bold; `wrap` breaks what does not fit into lines."""
    grid = Grid(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    grid.add_column(Text(printable(table.title)), no_wrap=not wrap, overflow="fold" if wrap else "ellipsis")
    for label in table.columns:
        grid.add_column(Text(printable(label)), justify="right", no_wrap=not wrap)
    for heading, rows in table.groups.items():
        if heading:
            grid.add_row(Text(heading), style="dim")
        for row in rows:
            name = Text(f"{'  ' if heading else ''}{printable(row.name)}")  # a plain string would be read as markup
            grid.add_row(name, *row.texts, style="bold" if row.name == bold else "")
    return grid


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(printable(text), style=style), soft_wrap=True)


def print_table(console: Console, table: Table, gap: int = 2, *, bold: str = MODEL) -> None:
    """Print a table whole: where the terminal is too narrow lines are broken, and no number is cut."""
    grid = grid_of(table, gap=gap, bold=bold)
    natural = console.measure(grid, options=console.options.update(max_width=_WIDEST)).maximum
    console.print(grid, width=max(console.width, natural), crop=False, no_wrap=True, overflow="ignore")
