"""`impresa eval`: evaluate a finished run, on its own test data or on others."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from impresa.cli.device import add_device, checked_device
from impresa.cli.numbers import count
from impresa.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from impresa.config.experiment import DatasetConfig
    from impresa.data.sources import Source
    from impresa.evaluation.results import Evaluation

HELP = (
    "Evaluate a run: retrieval in both directions beside a colour histogram and chance, and zero-shot classification "
    "where the data have labels; of a run with a decoder its answers, beside those to other images. On the run's own "
    "test data the run's evaluation and report are renewed; otherwise nothing is written."
)
SHAPES = "shapes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="directory that `impresa train` printed")
    parser.add_argument("--data", metavar="PATH", help="other data: a folder, a parquet file, or shapes")
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        default="test",
        help="part of the run's own data, or of shapes (default: test)",
    )
    parser.add_argument(
        "--batch-size", type=count, metavar="N", help="images or texts at a time (default: as in training)"
    )
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Evaluate and print; returns the exit code."""
    _check_arguments(args, overrides)
    from impresa.data.sources import open_source
    from impresa.run_dir.load import load
    from impresa.tasks import task_of
    from impresa.tasks.base import seconds_of_sound
    from impresa.tasks.samples import name_of_data

    model = load(args.run, device=checked_device(args.device))
    dataset = model.config.dataset
    task = task_of(model.config)
    seconds, asks = seconds_of_sound(model.config), task.answers
    if args.data:
        source = _open_data(args, dataset, seconds, asks)
    else:
        source = open_source(dataset, args.split, audio_seconds=seconds, dialogues=asks)
    try:
        # With sounds as in training: what a row without an image is called decides its part.
        train_source = open_source(dataset, "train", audio_seconds=seconds, dialogues=asks)
    except DataError as error:
        sys.stderr.write(
            f"no {task.blind_baseline} beside the model, because the training data cannot be read: {error}\n"
        )
        train_source = None
    evaluation = task.evaluate(
        model,
        source,
        data=_name(args) if args.data else name_of_data(dataset, args.split),
        train_source=train_source,
        batch_size=args.batch_size,
        show_progress=sys.stderr.isatty(),
    )
    try:
        if not args.data and args.split == "test":
            _renew(args.run, evaluation)
    finally:
        _print(evaluation, as_json=args.json)
    return 0


def _check_arguments(args: argparse.Namespace, overrides: list[str]) -> None:
    if overrides:
        raise ConfigError(f"{overrides[0]}: impresa eval takes no overrides; the run's own config is used")
    if args.data and args.data != SHAPES and args.split != "test":
        raise ConfigError(f"--split: {args.data} is evaluated whole; leave --split out")


def _open_data(args: argparse.Namespace, dataset: DatasetConfig, audio_seconds: float | None, asks: bool) -> Source:
    from dataclasses import replace

    from impresa.data.sources import open_path, open_source

    if args.data == SHAPES:
        shapes = replace(dataset, source="auto", train_path=SHAPES, val_path=None, test_path=None)
        return open_source(shapes, args.split, audio_seconds=audio_seconds, dialogues=asks)
    return open_path(dataset, args.data, audio_seconds=audio_seconds, dialogues=asks)


def _name(args: argparse.Namespace) -> str:
    return f"{SHAPES}, {args.split} split" if args.data == SHAPES else str(args.data)


def _print(evaluation: Evaluation, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(evaluation.to_dict(), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from impresa.reports.terminal import print_results

    print_results(evaluation, Console())


def _renew(run_dir: Path, evaluation: Evaluation) -> None:
    """Write the evaluation and the report into the run."""
    from impresa.evaluation.results import save_evaluation
    from impresa.reports.html import write_report

    try:
        save_evaluation(evaluation, run_dir)
        report = write_report(run_dir)
    except OSError as error:
        raise CheckpointError(f"{run_dir}: cannot be written ({error.strerror}); the figures above stand") from error
    sys.stderr.write(f"report: {report}\n")
