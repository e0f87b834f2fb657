"""Train a model. Progress goes to standard error; the last line on standard output is the run directory."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from impresa.cli.new_folder import command_line, new_folder
from impresa.cli.overrides import add_config_name, config_name
from impresa.errors import REQUEUE, CheckpointError, ConfigError, Requeue
from impresa.foreign_text import printable
from impresa.run_dir.layout import CONFIG, REPORT

if TYPE_CHECKING:
    from impresa.config.experiment import ExperimentConfig

_MOST_DEVICES = 1_024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_name(parser)
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="run directory (default: runs/NAME/DATE-TIME)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output-dir, if there is one")
    parser.add_argument(
        "--dry-run", action="store_true", help="build everything, estimate time, memory and disk, write nothing"
    )
    parser.add_argument(
        "--devices", type=int, metavar="N", help="with --dry-run: plan for N devices, which need not be here"
    )
    parser.add_argument("--json", action="store_true", help="with --dry-run: print the findings as JSON")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    from impresa.training.processes import end_process, scheduler_may_stop

    try:
        with scheduler_may_stop():  # from the start: a job that is stopped while it loads is to be queued again
            _run(args, overrides)
    except Requeue:
        return end_process(REQUEUE)
    return 0 if args.dry_run else end_process()


def _run(args: argparse.Namespace, overrides: list[str]) -> None:
    # Mistakes are found before torch is imported, where that is possible.
    from impresa.cli.chosen import load_or_choose, say_how_long
    from impresa.config.runs import prepare
    from impresa.hub import check_reach
    from impresa.training.processes import is_main_process, show_notices

    show_notices()  # composing and preparing have some, too
    if args.resume and args.dry_run:
        raise ConfigError("--dry-run: makes a fresh step; leave out --resume")
    if args.resume and args.output_dir is None:
        raise ConfigError("--resume: which run? name its folder with --output-dir")
    _check_dry_options(args)
    name = _config_to_train(args)
    config = prepare(load_or_choose(name, overrides))
    if not args.resume:  # which has its models
        check_reach(config)
    if not (args.dry_run or args.resume):
        say_how_long(name, config)
    run_dir = None if args.dry_run else _run_dir(args, config)
    if run_dir is None:
        _print_dry_run(config, args)
        return
    from impresa.training.run import train

    train(config, run_dir, command=command_line(), resume=args.resume)
    if is_main_process():
        _print_results(run_dir)


def _check_dry_options(args: argparse.Namespace) -> None:
    if args.json and not args.dry_run:
        raise ConfigError("--json: is for --dry-run; a run writes metrics.csv and evaluation.json")
    if args.devices is not None and not args.dry_run:
        raise ConfigError("--devices: plans a --dry-run; a run takes trainer.devices=N")
    if args.devices is not None and not 1 <= args.devices <= _MOST_DEVICES:
        raise ConfigError(f"--devices: got {args.devices}; it must be a number from 1 to {_MOST_DEVICES:,}")


def _print_dry_run(config: ExperimentConfig, args: argparse.Namespace) -> None:
    from impresa.training.dry_run import dry_run, lines

    found = dry_run(config, args.devices)
    if args.json:
        print(json.dumps(asdict(found), indent=2))
    else:
        print(printable("\n".join(lines(found)), lines=True))


def _config_to_train(args: argparse.Namespace) -> str | None:
    """The config that is named; a run to be resumed needs no name, and without one it must be there."""
    name = config_name(args)
    if name is not None or not args.resume:
        return name
    if not (args.output_dir / CONFIG).is_file():
        raise CheckpointError(f"{args.output_dir}: there is no run to resume; name a config to start one there")
    return str(args.output_dir / CONFIG)


def _run_dir(args: argparse.Namespace, config: ExperimentConfig) -> Path:
    """The run directory, free to be used; every process of a training run gets the same."""
    from impresa.cli.chosen import is_own
    from impresa.run_dir.claim import claim
    from impresa.training.processes import check_shared_folder, is_main_process

    check_shared_folder(named=args.output_dir is not None)
    name = config_name(args) or "default"
    run_dir: Path = args.output_dir or new_folder("runs", config.name if is_own(name) else name)
    if is_main_process():
        claim(run_dir, config, resume=args.resume)
    return run_dir


def _print_results(run_dir: Path) -> None:
    """The evaluation, the report and, as the last line, the run directory."""
    from rich.console import Console

    from impresa.config.compose import read_config
    from impresa.config.origin import towers_in_words
    from impresa.evaluation.results import read_evaluation
    from impresa.reports.charts import read_history
    from impresa.reports.overfitting import overfitting
    from impresa.reports.terminal import print_results

    evaluation, config = read_evaluation(run_dir), read_config(run_dir / CONFIG)
    if evaluation is not None:
        print_results(evaluation, Console())
    for name, origin in towers_in_words(config).items() if config.decoder is not None else ():
        print(printable(f"{name}: {origin}"))
    if line := overfitting(read_history(run_dir), config.trainer.checkpoint):
        print(line)
    print(f"report: {run_dir / REPORT}")
    print(run_dir)
