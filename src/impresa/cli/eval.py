"""Evaluate a finished run, on its own test data or on others.

Retrieval in both directions beside a colour histogram and chance, and zero-shot classification where the data have
labels; of a run with a decoder its answers, beside those to other images. On the run's own test data the run's
evaluation and report are renewed; otherwise nothing is written. Other data are read with the run's columns, but not
from its dataset.image_root, and may have keys of their own: dataset.caption_column=text, and so on.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from impresa.cli.options import add_device, checked_device, count
from impresa.cli.overrides import check_data_overrides
from impresa.config.paths import EMBEDDED
from impresa.errors import CheckpointError, ConfigError, DataError
from impresa.foreign_text import json_text, printable

if TYPE_CHECKING:
    from impresa.config.experiment import DatasetConfig
    from impresa.data.sources import Reading, Source
    from impresa.evaluation.results import Evaluation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="directory that `impresa train` printed")
    parser.add_argument("--data", metavar="PATH", help="other data: a folder, a parquet file, or shapes")
    splits = ("train", "val", "test")
    parser.add_argument(
        "--split", choices=splits, default="test", help="of the run's data or of shapes (default: test)"
    )
    parser.add_argument(
        "--batch-size", type=count, metavar="N", help="images or texts at a time (default: that of training)"
    )
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Evaluate and print."""
    if args.data and args.data != EMBEDDED and args.split != "test":
        raise ConfigError(f"--split: {args.data} is evaluated whole; leave --split out")
    if overrides and not args.data:
        raise ConfigError(
            f"{overrides[0]}: is for other data than the run's own; name them with --data, or leave it out"
        )
    check_data_overrides(overrides)
    from rich.console import Console

    from impresa.config.compose import with_overrides
    from impresa.data.sources import open_source, reading_of
    from impresa.reports.terminal import print_results
    from impresa.run_dir.load import load
    from impresa.tasks import task_of

    model = load(args.run, device=checked_device(args.device))
    trained = model.config
    task = task_of(trained)
    if args.data:  # the run's own images, under names that other data may have too
        model.config = replace(trained, dataset=replace(trained.dataset, image_root=None))
    if overrides:
        model.config = with_overrides(model.config, overrides)
    source, name = _open_data(args, model.config.dataset, reading_of(trained, labels=True))
    try:
        # With sounds as in training: what a row without an image is called decides its part.
        train_source = open_source(trained.dataset, "train", reading_of(trained))
    except DataError as error:
        baseline = f"no {task.blind_baseline} beside the model"
        print(printable(f"{baseline}, because the training data cannot be read: {error}"), file=sys.stderr)
        train_source = None
    show = sys.stderr.isatty()
    evaluation = task.evaluate(
        model, source, data=name, train_source=train_source, batch_size=args.batch_size, show_progress=show
    )
    try:
        if not args.data and args.split == "test":
            _renew(args.run, evaluation)
    finally:
        if args.json:
            print(json_text(evaluation.to_dict()))
        else:
            print_results(evaluation, Console())


def _open_data(args: argparse.Namespace, dataset: DatasetConfig, reading: Reading) -> tuple[Source, str]:
    """The data to evaluate on, and their name in the results."""
    from impresa.data.sources import open_path, open_source
    from impresa.tasks.samples import name_of_data

    if args.data and args.data != EMBEDDED:
        return open_path(dataset, args.data, reading), args.data
    if args.data:
        dataset = replace(dataset, source="auto", train_path=EMBEDDED, val_path=None, test_path=None)
    return open_source(dataset, args.split, reading), name_of_data(dataset, args.split)


def _renew(run_dir: Path, evaluation: Evaluation) -> None:
    """Write the evaluation and the report into the run."""
    from impresa.evaluation.results import save_evaluation
    from impresa.reports.html import write_report

    try:
        save_evaluation(evaluation, run_dir)
        report = write_report(run_dir)
    except OSError as error:
        raise CheckpointError(f"{run_dir}: cannot be written ({error.strerror}); the figures above stand") from error
    print(f"report: {report}", file=sys.stderr)
