"""Evaluate a finished run, on its own test data or on other data, or compare several.

Retrieval in both directions beside a colour histogram, a ridge regression and chance, and zero-shot classification
where the data have labels; for a run with a decoder its answers, beside those with shuffled images. On the run's own
test data the run's evaluation and report are rewritten; otherwise nothing is written. Other data are read with the
run's columns, but not from its dataset.image_root, and may have keys of their own: dataset.caption_column=text, and so
on.

Every answer of a run with a decoder is a line of predictions.jsonl in the run, or of the file that --predictions names.

Several runs are evaluated on the test data of the first, or on --data, and compared with the first item by item; then
nothing is written.

In place of a run, a config whose towers are a pretrained pair is measured as it is before any training, as in `impresa
eval clip --data photos/`; `impresa eval clip RUN --data photos/` compares before and after.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impresa.cli.named import config_of, is_config
from impresa.cli.options import add_device, checked_device, count
from impresa.cli.other_data import add_data, check_other_data, open_data, reading_config
from impresa.config.paths import check_data_paths
from impresa.errors import CheckpointError, ConfigError, DataError
from impresa.foreign_text import json_text, printable
from impresa.hub import check_reach

if TYPE_CHECKING:
    from impresa.config.dataset import DatasetConfig
    from impresa.config.experiment import ExperimentConfig
    from impresa.evaluation.comparison import Comparison
    from impresa.evaluation.results import Evaluation
    from impresa.tasks.alignment.embedder import EmbeddingModel
    from impresa.tasks.answering.answerer import AnsweringModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="directory that `impresa train` printed, or a config"
    )
    add_data(parser)
    splits = ("train", "val", "test")
    parser.add_argument(
        "--split", choices=splits, default="test", help="split of the run's data or of shapes (default: test)"
    )
    parser.add_argument(
        "--batch-size", type=count, metavar="N", help="images or texts at a time (default: that of training)"
    )
    add_device(parser)
    parser.add_argument(
        "--linear-probe", action="store_true", help="also fit a linear classifier on the labelled training images"
    )
    what = "runs with a decoder: also write every answer to this .jsonl file, one per line"
    parser.add_argument("--predictions", type=Path, metavar="FILE", help=what)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Evaluate and print."""
    check_other_data(args.data, [] if _is_one_config(args) else overrides, has_split=args.split != "test")
    if args.linear_probe and find_spec("sklearn") is None:
        raise ConfigError("--linear-probe: needs scikit-learn; pip install 'impresa[probe]' installs it")
    if args.predictions:
        _check_predictions(args)
    from rich.console import Console

    from impresa.evaluation.predictions import write_predictions
    from impresa.reports.terminal import print_comparison, print_results

    if len(args.runs) > 1:
        comparison = _compare(args, overrides)
        print(json_text(comparison.to_dict())) if args.json else print_comparison(comparison, Console())
        return
    evaluation = _evaluate_one(args, overrides)
    try:
        if args.predictions:
            write_predictions(evaluation.predictions, args.predictions)
        if _renews(args):
            _renew(args.runs[0], evaluation)
    finally:
        print(json_text(evaluation.to_dict())) if args.json else print_results(evaluation, Console())


def _check_predictions(args: argparse.Namespace) -> None:
    """Refuse what answers nothing and a file that cannot be written, before anything is loaded."""
    if len(args.runs) > 1:
        raise ConfigError("--predictions: is for one run; name a single one")
    if config_of(args.runs[0]).decoder is None:
        raise ConfigError(f"--predictions: {args.runs[0]} answers no questions; name a run with a decoder")
    file: Path = args.predictions
    if file.is_dir() or not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise DataError(f"--predictions: {file} cannot be written; name a file in a folder that is there")


def _evaluate_one(args: argparse.Namespace, overrides: list[str]) -> Evaluation:
    from impresa.evaluation.before import with_before
    from impresa.reports.verdict import with_reasons

    run = args.runs[0]
    if _is_one_config(args):
        config = config_of(run, overrides)
        if not args.data:
            check_data_paths(config)  # before anything is fetched
        check_reach(config)
    model = _opened(run, overrides, checked_device(args.device))
    trained = model.config
    if not _is_one_config(args):
        model.config = reading_config(trained, args.data, overrides)
    has_baselines = not (_is_one_config(args) and args.data)
    evaluation = _evaluated(args, model, model.config.dataset, trained, has_baselines=has_baselines)
    return evaluation if _is_one_config(args) else with_before(with_reasons(evaluation, trained, run), run)


def _is_one_config(args: argparse.Namespace) -> bool:
    return len(args.runs) == 1 and is_config(args.runs[0])


def _opened(run: Path, overrides: list[str], device: str | None) -> EmbeddingModel | AnsweringModel:
    """The model of a run, or of a config as it is before any training; then a line says so."""
    if not is_config(run):
        from impresa.run_dir.load import load

        return load(run, device=device)
    from impresa.tasks.alignment.untrained import how_untrained, untrained

    model = untrained(config_of(run, overrides), device)
    print(f"{run}: {how_untrained(model)}", file=sys.stderr)
    return model


def _compare(args: argparse.Namespace, overrides: list[str]) -> Comparison:
    """The runs on the data of the first, one in memory at a time."""
    from impresa.evaluation.comparison import compare
    from impresa.evaluation.results import Gallery

    first = _config_of_all(args.runs)
    device = checked_device(args.device)
    reading = reading_config(first, args.data, overrides).dataset
    evaluations: list[Evaluation] = []
    for run_dir in args.runs:
        model = _opened(run_dir, [], device)
        dataset = reading
        if evaluations and (shot := evaluations[0].zero_shot) is not None:
            dataset = replace(reading, class_names=shot.classes)  # those of the training data are among them
        model.config = replace(model.config, dataset=dataset)
        found = _evaluated(args, model, reading, first, has_baselines=not (evaluations or is_config(run_dir)))
        evaluations.append(replace(found, gallery=Gallery()))  # its pictures are shown nowhere
        del model  # before the next one is loaded
    return compare([str(run_dir) for run_dir in args.runs], evaluations)


def _config_of_all(runs: Sequence[Path]) -> ExperimentConfig:
    """The config of the first run, once it is known that the others can be compared with it."""
    first, *others = map(config_of, runs)
    for run_dir, other in zip(runs[1:], others, strict=True):
        if (other.decoder is None) != (first.decoder is None):
            does = ("embeds", "answers questions") if other.decoder is None else ("answers questions", "embeds")
            raise ConfigError(f"{run_dir}: {does[0]} and {runs[0]} {does[1]}; compare runs of one kind")
    return first


def _evaluated(
    args: argparse.Namespace, model: Any, dataset: DatasetConfig, trained: ExperimentConfig, *, has_baselines: bool
) -> Evaluation:
    """A model on the data; baselines and linear probe are fitted on the training data of `trained`."""
    from impresa.data.sources import open_source, reading_of
    from impresa.tasks import task_of
    from impresa.tasks.gallery import with_explanations

    task = task_of(model.config)
    source, name = open_data(dataset, args.data, args.split, reading_of(model.config, labels=True))
    train_source = None
    try:
        # With sounds as in training: what a row without an image is called decides its part.
        train_source = open_source(trained.dataset, "train", reading_of(trained)) if has_baselines else None
    except DataError as error:
        baseline = f"no {task.blind_baseline} beside the model"
        print(printable(f"{baseline}, because the training data cannot be read: {error}"), file=sys.stderr)
    options: dict[str, Any] = {"data": name, "train_source": train_source, "batch_size": args.batch_size}
    if args.linear_probe:
        if task.answers:
            raise ConfigError("--linear-probe: a model with a decoder embeds nothing; name the run of an alignment")
        options["probe_source"] = open_source(trained.dataset, "train", reading_of(trained, labels=True))
    evaluation = task.evaluate(model, source, **options, show_progress=sys.stderr.isatty())
    return with_explanations(evaluation, task, model, source) if _renews(args) else evaluation


def _renews(args: argparse.Namespace) -> bool:
    """True if the run's own evaluation and report are written anew."""
    return len(args.runs) == 1 and not args.data and args.split == "test" and not _is_one_config(args)


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
