"""The results of an evaluation for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from impresa.evaluation.results import Evaluation
from impresa.foreign_text import printable
from impresa.reports.tables import MODEL, Table, interval_note, make_tables, summary, warnings


def print_results(evaluation: Evaluation, console: Console) -> None:
    """Print all tables of an evaluation, and what was wrong with the model or the data."""

    def line(text: str, style: str = "") -> None:
        console.print(Text(printable(text), style=style), soft_wrap=True)

    line(summary(evaluation), "dim")
    tables = make_tables(evaluation)
    for table in tables:
        console.print(grid(table))
        if table.figures:
            line(table.figures)
    if note := interval_note(tables):
        line(note, "dim")
    for warning in warnings(evaluation):
        line(warning, "yellow")
    if bad := evaluation.bad_samples:
        line(f"bad samples, skipped: {len(bad):,}; the first is {bad[0].id}: {bad[0].reason}", "yellow")


def grid(table: Table) -> Grid:
    """A table for the console, the model's rows in bold."""
    found = Grid(box=None, pad_edge=False)
    found.add_column(table.title, no_wrap=True)
    for label in table.columns:
        found.add_column(label, justify="right", no_wrap=True)
    for heading, rows in table.groups.items():
        if heading:
            found.add_row(Text(heading), style="dim")
        for row in rows:
            name = Text(f"{'  ' if heading else ''}{printable(row.name)}")  # a plain string would be read as markup
            found.add_row(name, *row.texts, style="bold" if row.name == MODEL else "")
    return found
