"""The data of a training run as its report shows them, in `evaluation/data.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from impresa.evaluation.gallery import DataUri
from impresa.files import refuse_links, write_atomic
from impresa.json_files import Count, read_json
from impresa.run_dir.layout import DATA


@dataclass(frozen=True)
class TrainingSample:
    """A training sample as a batch of the first epoch sees it: augmented, with the texts that were drawn."""

    id: str
    image: DataUri | None
    captions: tuple[str, ...] = ()
    questions: tuple[tuple[str, str], ...] = ()
    """The first question of each drawn dialogue, and its answer."""


@dataclass(frozen=True)
class DataPreview:
    """Sizes of the data, a few training samples, and what a reader of the loss needs to know of them."""

    splits: dict[str, Count]
    """Rows of each split, bad ones included."""
    steps_per_epoch: Count
    has_short_step: bool
    """True if the last optimizer step of an epoch has fewer samples than the others, and with them a lower loss."""
    loss_at_chance: float | None
    """Loss of a full batch whose embeddings are all the same; None of a model that answers."""
    samples: tuple[TrainingSample, ...] = ()


def read_preview(run_dir: Path) -> DataPreview | None:
    """The preview of a run; None for a run that has not finished, or is older than this file.

    Raises:
        CheckpointError: the file was not written by this program.
    """
    path = run_dir / DATA
    return read_json(path, DataPreview, fix="remove it") if path.is_file() else None


def save_preview(preview: DataPreview, run_dir: Path) -> None:
    """Write the preview into a run directory."""
    refuse_links(run_dir)
    (run_dir / DATA).parent.mkdir(exist_ok=True)
    write_atomic(run_dir / DATA, json.dumps(asdict(preview), ensure_ascii=False) + "\n")
