"""The report of a run: one HTML page with everything in it, made from the files of the run directory."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from impresa.config.compose import read_config
from impresa.errors import CheckpointError
from impresa.evaluation.results import read_evaluation
from impresa.files import write_atomic
from impresa.reports import answers, sections
from impresa.reports.history import read_history
from impresa.reports.markup import Markup, fill, join

REPORT_FILE = "report.html"

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run directory and return its path.

    The page stands alone: pictures and charts are inside, nothing is fetched. What the run does not have (yet), such as
    an evaluation, is left out.

    Raises:
        CheckpointError: there is no such directory, or its evaluation was not written by this program.
        ConfigError: its `config.yaml` is broken.
    """
    if not run_dir.is_dir():
        raise CheckpointError(f"{run_dir}: is no run directory; give the one that `impresa train` printed last")
    return write_atomic(run_dir / REPORT_FILE, render_report(run_dir))


def render_report(run_dir: Path) -> str:
    """The page as a string; see `write_report`."""
    config_file = run_dir / "config.yaml"
    config = read_config(config_file) if config_file.is_file() else None
    environment = _read_json(run_dir / "environment.json")
    evaluation = read_evaluation(run_dir)
    name = config.name if config else run_dir.resolve().name
    parts = [sections.header(name, config, environment)]
    if evaluation is None:
        parts.append(sections.no_evaluation(run_dir))
    else:
        parts += [sections.headline(evaluation), sections.results(evaluation), sections.sound(evaluation)]
        parts.append(answers.results(evaluation))
    parts.append(sections.curves(read_history(run_dir)))
    if evaluation is not None:
        parts.append(answers.examples(evaluation.gallery))
        parts += [sections.examples(evaluation.gallery), sections.similarity(evaluation.gallery)]
        parts.append(sections.zero_shot(evaluation.zero_shot))
    parts.append(sections.bad_samples(evaluation, _read_bad_samples(run_dir / "bad_samples.jsonl")))
    parts.append(sections.reproduce(config, environment, config_file.read_text("utf-8") if config else None))
    style = files("impresa.reports").joinpath("report.css").read_text(encoding="utf-8")
    return fill(_PAGE, title=name, style=Markup(style), body=join(parts))


def _read_json(path: Path) -> dict[str, Any]:
    """What the run wrote down about itself: command, versions, times."""
    if not path.is_file():
        return {}
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: is no JSON ({error}); remove it") from error
    return tree if isinstance(tree, dict) else {}


def _read_bad_samples(path: Path) -> list[dict[str, Any]]:
    """Samples that training skipped; a last line that was cut off is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
