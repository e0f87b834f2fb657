"""The report of a run: one HTML page with everything in it, made from the files of the run directory."""

from __future__ import annotations

import base64
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from markupsafe import Markup

from impresa.config.compose import read_config
from impresa.config.experiment import ExperimentConfig, LabelsConfig
from impresa.config.origin import towers_in_words
from impresa.errors import CheckpointError
from impresa.evaluation.preview import read_preview
from impresa.evaluation.results import Evaluation, ZeroShotMetrics, read_evaluation
from impresa.files import write_atomic
from impresa.json_files import parse_json, read_text
from impresa.reports.charts import Curve, history_charts, last_step, matrix_png, read_history
from impresa.reports.overfitting import monitored_curve, overfitting
from impresa.reports.rendering import render
from impresa.reports.tables import MODEL, Table, interval_note, make_tables, summary, warnings
from impresa.run_dir.cost import Cost, read_cost
from impresa.run_dir.environment import Environment, read_environment
from impresa.run_dir.layout import (
    BAD_SAMPLES,
    CONFIG,
    COST,
    ENVIRONMENT,
    EVALUATION,
    EVENTS,
    METRICS,
    MODEL_CARD,
    REPORT,
    WEIGHTS,
)

MAX_TABLE_CLASSES = 20
"""Confusion matrices of more classes become a picture."""
MAX_LISTED = 20
FILES = {
    MODEL_CARD: "model card",
    CONFIG: "every setting; trains the same model again",
    METRICS: "the curves as a table",
    EVALUATION: "all results",
    WEIGHTS: "the weights",
    COST: "size, work, time and memory",
    ENVIRONMENT: "versions, machine, command",
    BAD_SAMPLES: "samples that were skipped",
    f"{EVENTS}/": "the same for TensorBoard",
}
"""Files that the page links to where they are there, and what they are."""


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run directory and return its path.

    The page stands alone: pictures and charts are inside, nothing is fetched. Parts that the run lacks, such as an
    evaluation, are left out.

    Raises:
        CheckpointError: there is no such directory, or its evaluation was not written by this program.
        ConfigError: its `config.yaml` is broken.
    """
    if not run_dir.is_dir():
        raise CheckpointError(f"{run_dir}: is no run directory; give the one that `impresa train` printed last")
    return write_atomic(run_dir / REPORT, render_report(run_dir))


def render_report(run_dir: Path) -> str:
    """The page as a string; see `write_report`."""
    config_file = run_dir / CONFIG
    config = read_config(config_file) if config_file.is_file() else None
    environment = read_environment(run_dir)
    found = read_evaluation(run_dir)
    evaluation, history = found or Evaluation("", 0, 0, 0), read_history(run_dir)
    tables, preview, script = make_tables(evaluation), read_preview(run_dir), render("copy.js")
    bad = [*_read_bad_samples(run_dir / BAD_SAMPLES), *(("evaluation", n.id, n.reason) for n in evaluation.bad_samples)]
    return render(
        "report.html.j2",
        name=config.name if config else run_dir.resolve().name,
        labels=config.labels if config else LabelsConfig(),
        started=environment.get("started", "").replace("T", " ").replace("+00:00", " UTC"),
        eval_command=None if found else shlex.join(("impresa", "eval", str(run_dir))),
        summary=summary(evaluation),
        warnings=[*warnings(evaluation), *filter(None, [config and overfitting(history, config.trainer.checkpoint)])],
        notes=evaluation.notes,
        tables=tables,
        interval_note=interval_note(tables),
        headlines=_headlines(tables),
        model=MODEL,
        preview=preview,
        charts=history_charts(history, preview),
        gallery=evaluation.gallery,
        subject="image" if evaluation.num_images else "sound",
        zero_shot=evaluation.zero_shot,
        class_accuracies=_class_accuracies(evaluation.zero_shot),
        confusions=_confusions(evaluation.zero_shot),
        max_table_classes=MAX_TABLE_CLASSES,
        matrix_png=matrix_png,
        bad_samples=bad[:MAX_LISTED],
        bad_counts=Counter(split for split, _, _ in bad),
        command=shlex.join(environment.get("command", ())),
        facts={
            **_best_step(history, config),
            **_costs(read_cost(run_dir)),
            **_facts(environment, config),
        },
        files={name: about for name, about in FILES.items() if (run_dir / name).exists()},
        load_code=f"import impresa\n\nmodel = impresa.load({str(run_dir)!r})" if (run_dir / WEIGHTS).exists() else None,
        script=Markup(script),
        script_hash=base64.b64encode(sha256(script.encode()).digest()).decode(),
        config_text=config_file.read_text("utf-8") if config else "",
    )


def _headlines(tables: list[Table]) -> list[tuple[str, dict[str, str]]]:
    """The main columns: a title, and a percentage for each row."""
    return [
        (f"{heading}, {label}" if heading else label, {row.name: row.cells[column] for row in rows})
        for table in tables
        for heading, rows in table.groups.items()
        for column, label in enumerate(table.columns)
        if label in table.headlines
    ]


def _confusions(scores: ZeroShotMetrics | None) -> list[tuple[str, str, int]]:
    """The most frequent confusions: true class, the class named, number of images."""
    if scores is None:
        return []
    wrong = [
        (true, named, count)
        for true, row in zip(scores.classes, scores.confusion, strict=True)
        for named, count in zip(scores.classes, row, strict=True)
        if true != named and count
    ]
    return sorted(wrong, key=lambda confusion: -confusion[2])[:MAX_LISTED]


def _class_accuracies(scores: ZeroShotMetrics | None) -> list[tuple[str, float, int]]:
    """Class, accuracy and number of images, the worst first."""
    if scores is None:
        return []
    sizes = {name: sum(row) for name, row in zip(scores.classes, scores.confusion, strict=True)}
    found = [(name, accuracy, sizes[name]) for name, accuracy in scores.per_class_accuracy.items()]
    return sorted(found, key=lambda entry: entry[1])


def _best_step(history: Mapping[str, Curve], config: ExperimentConfig | None) -> dict[str, str]:
    """The optimizer step whose validation was best, of all that were made."""
    checkpoint = None if config is None else config.trainer.checkpoint
    if checkpoint is None or (curve := history.get(checkpoint.monitor)) is None:
        return {}
    best = monitored_curve(curve, checkpoint.mode).best_step
    return {"Best step": f"{best:,} of {last_step(history):,}, by {checkpoint.monitor}"}


def _facts(environment: Environment, config: ExperimentConfig | None) -> dict[str, Any]:
    """Seed, versions and machine, as far as they are known."""
    git, packages = environment.get("git"), environment.get("packages", {})
    versions = {"impresa": environment.get("impresa"), "python": environment.get("python"), **packages}
    facts = {
        **(towers_in_words(config) if config is not None and config.decoder is not None else {}),
        "Seed": environment.get("seed", config.seed if config else None),
        "Versions": ", ".join(f"{name} {found}" for name, found in versions.items() if found),
        "Commit": git and git["commit"] + (" with changes" if git["has_changes"] else ""),
        "Machine": environment.get("platform"),
        "Threads": environment.get("threads"),
        "GPUs": ", ".join(environment.get("gpus", [])),
    }
    return {name: fact for name, fact in facts.items() if fact not in (None, "")}


def _costs(cost: Cost | None) -> dict[str, str]:
    """Size, time, speed, work and memory of the training, as far as they are known."""
    if cost is None:
        return {}
    work = cost.flops_per_sample
    return {
        "Parameters": f"{cost.parameters:,}, {cost.trainable_parameters:,} of them trained",
        "Training time": f"{timedelta(seconds=round(cost.training_seconds))}, {cost.samples_per_second:,.0f} samples/s",
        **({"Work": f"{work / 1e9:,.2f} GFLOP per sample, forward and backward"} if work else {}),
        "Peak memory": f"{cost.peak_memory_bytes / 2**30:.1f} GiB",
    }


def _read_bad_samples(path: Path) -> Iterator[tuple[str, object, object]]:
    """Split, id and reason of the samples that training skipped; a last line that was cut off is left out."""
    for line in read_text(path).splitlines():
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield str(row.get("split", "")), row.get("id", ""), row.get("reason", "")
