"""The result of a study for people and for programs: a page, Markdown, a table of runs, JSON, and the terminal."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from impresa.ablation.curves import dimension_plots, learning_plots, legend
from impresa.ablation.findings import MARKS, Findings, find, headlines, lead, notes, verdicts
from impresa.ablation.plots import MAX_SHOWN, Plot, cost_plots, effect_plot, seed_plot
from impresa.ablation.results import StudyResult, read_results, write_json
from impresa.ablation.study import Study
from impresa.ablation.tables import make_tables
from impresa.files import write_atomic
from impresa.foreign_text import printable
from impresa.reports.rendering import render
from impresa.reports.terminal import grid_of
from impresa.run_dir.cost import Cost

__all__ = ["print_result", "read_results", "write_results"]
PAGE, MARKDOWN, TABLE, JSON = "ablation.html", "ablation.md", "ablation.csv", "ablation.json"
"""Names of the files in the study's directory."""


def write_results(result: StudyResult, study_dir: Path) -> Path:
    """Write `ablation.html`, `.md`, `.csv` and `.json` into the directory of a study and return the page's path.

    The page stands alone: charts are inside, nothing is fetched. Runs that are missing or failed are named in it.
    """
    findings = find(result)
    write_json(result, findings.comparisons, study_dir / JSON)
    write_atomic(study_dir / TABLE, render_csv(result))
    write_atomic(study_dir / MARKDOWN, render_markdown(findings))
    return write_atomic(study_dir / PAGE, render_page(findings))


def render_page(findings: Findings) -> str:
    return render(
        "ablation.html.j2",
        **_words(findings),
        plots=list(_plots(findings)),
        legend=legend(findings),
        max_shown=MAX_SHOWN,
        marks=MARKS,
        verdicts=verdicts(findings),
        short_names=findings.short_names,
    )


def _plots(findings: Findings) -> Iterator[Plot]:
    yield from filter(None, (effect_plot(findings), seed_plot(findings)))
    yield from cost_plots(findings)
    yield from dimension_plots(findings)
    yield from learning_plots(findings)


def render_markdown(findings: Findings) -> str:
    return render("ablation.md.j2", **_words(findings))


def render_csv(result: StudyResult) -> str:
    """A row for each run with all its figures and costs; a cell of what was not measured is empty."""
    names = list(dict.fromkeys(name for run in result.runs for name in run.figures))
    costs = [field.name for field in fields(Cost)]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("variant", "seed", "status", "reason", "folder", *names, *costs))
    for run in result.runs:
        cost = asdict(run.cost) if run.cost else {}
        what = (run.variant, run.seed, run.status, run.reason, run.folder)
        table.writerow((*what, *(run.figures.get(name) for name in names), *(cost.get(name) for name in costs)))
    return text.getvalue()


def print_result(result: StudyResult, console: Console) -> None:
    """Print tables and verdicts."""
    findings = find(result)

    def line(text: str, style: str = "") -> None:
        console.print(Text(printable(text), style=style), soft_wrap=True)

    for table in make_tables(findings):
        console.print(grid_of(table, bold=findings.names[0], wrap=True))
        for text in filter(None, (table.figures, table.note)):
            line(text, "dim")
        console.print()
    line(lead(findings), "bold")
    for headline in headlines(findings):
        line(f"{MARKS[headline.verdict]} {headline.name}: {headline.text}")
    for note in notes(findings):
        line(note, "yellow")


def _words(findings: Findings) -> dict[str, Any]:
    """All but the charts, for the templates."""
    result = findings.result
    return {
        "title": printable(result.study.title or f"Ablation of {result.study.base}"),
        "about": _about(result),
        "lead": lead(findings),
        "notes": list(notes(findings)),
        "headlines": headlines(findings),
        "tables": make_tables(findings),
        "failed": [(printable(run.variant), run.seed, printable(run.reason)) for run in result.with_status("failed")],
        "facts": _facts(result.study),
    }


def _about(result: StudyResult) -> str:
    num_variants, num_seeds = len(result.variants), len(result.study.seeds)
    finished = len(result.with_status("finished"))
    return f"{num_variants} variants with {num_seeds} seeds each, {finished} of {len(result.runs)} runs finished"


def _facts(study: Study) -> dict[str, str]:
    facts = {
        "Base": study.base,
        "Overrides": shlex.join(study.overrides),
        "Switches": "; ".join(f"{switch.key} = {', '.join(switch.values)}" for switch in study.switches),
        "Design": study.design,
        "Null control": "yes" if study.null else "",
        "Seeds": ", ".join(map(str, study.seeds)),
        "Judge": study.metrics[0],
        "Further metrics": ", ".join(study.metrics[1:]),
    }
    return {name: printable(fact) for name, fact in facts.items() if fact}
