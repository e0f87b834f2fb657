"""The figures of a pretrained pair before its first training step, kept in the run beside those of its end."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import AllowInfNan

from impresa.evaluation.figures import figures
from impresa.evaluation.results import Evaluation
from impresa.files import write_atomic
from impresa.json_files import read_json
from impresa.run_dir.layout import BEFORE


@dataclass(frozen=True)
class Before:
    """What a run had measured when it started."""

    data: str
    items: str
    """Digest of the images, captions and labels."""
    figures: dict[str, Annotated[float, AllowInfNan(False)]]
    """By name of `impresa.evaluation.figures`."""


def write_before(evaluation: Evaluation, run_dir: Path) -> None:
    """Keep the figures of an evaluation as those of the start."""
    before = Before(evaluation.data, evaluation.items, figures(evaluation))
    write_atomic(run_dir / BEFORE, json.dumps(asdict(before), indent=2) + "\n")


def with_before(evaluation: Evaluation, run_dir: Path) -> Evaluation:
    """The evaluation with the figures that the run started from, if it has measured them on the same items.

    Raises:
        CheckpointError: the file was not written by this program.
    """
    path = run_dir / BEFORE
    if not path.is_file():
        return evaluation
    before = read_json(path, Before, fix="remove it")
    return replace(evaluation, before=before.figures) if before.items == evaluation.items else evaluation
