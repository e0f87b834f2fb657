"""Change settings of a config one by one, train each variant with several seeds, and show with error bars what changed.

`impresa ablate shapes losses.type=clip,siglip --seeds 5`. A study is a cache of runs: with the same --output-dir it
resumes, and trains only what is missing. Progress goes to standard error; the last line on standard output is the
folder of the study. Exit code 1: some runs failed, and each has a line.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from impresa.cli.new_folder import command_line, new_folder
from impresa.cli.options import count
from impresa.cli.overrides import add_config_name, config_name
from impresa.errors import ConfigError
from impresa.foreign_text import printable

if TYPE_CHECKING:
    from impresa.ablation.launchers import Launcher
    from impresa.ablation.plan import PlannedRun
    from impresa.ablation.runner import Standing
    from impresa.ablation.study import Study

FAILED_RUNS = 1
"""Exit code."""
TRAIN_HERE = (sys.executable, "-m", "impresa.cli.child")
TRAIN_IN_JOB = (sys.executable, "-m", "impresa")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_name(parser)
    seeds = "number of seeds for each variant, or a list of them such as 1,2,3 (default: the study's, or 5)"
    parser.add_argument("--seeds", type=_seeds, metavar="N", help=seeds)
    designs = "flip each switch alone (default), or train all combinations"
    parser.add_argument("--design", choices=("one-at-a-time", "grid"), help=designs)
    metrics = "metric for verdicts; repeat it to show others (default: that of the kind of model)"
    parser.add_argument("--metric", action="append", default=[], metavar="NAME", help=metrics)
    parser.add_argument("--null", action="store_true", help="add a control: the base with other seeds")
    jobs = "runs at a time, which share the cores and the GPUs (default: 1; with slurm all)"
    parser.add_argument("--jobs", type=count, metavar="N", help=jobs)
    where = "where runs are trained: on this machine (default) or by SLURM"
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local", help=where)
    slurm = "partition, account, qos, constraint, time (minutes), gpus, cpus or memory (GB) of each job; repeatable"
    parser.add_argument("--slurm", action="append", type=_setting, metavar="KEY=VALUE", default=[], help=slurm)
    pilot = "train N seeds of the base first, to give the power in units of the metric; they are part of the study"
    parser.add_argument("--pilot", type=count, metavar="N", default=0, help=pilot)
    parser.add_argument(
        "--output-dir", type=Path, metavar="STUDY", help="folder of the study (default: ablations/NAME/DATE-TIME)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the number of runs, time and power, and train nothing"
    )


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    from impresa.ablation.folder import check_study_dir
    from impresa.ablation.launchers import check_slurm
    from impresa.ablation.plan import plan
    from impresa.ablation.runner import different, standing_of
    from impresa.ablation.study import make_study
    from impresa.cli.chosen import is_own
    from impresa.run_dir.lock import locked
    from impresa.training.processes import show_notices

    if args.launcher != "slurm" and args.slurm:
        raise ConfigError("--slurm: says how SLURM runs a job; add --launcher slurm, or leave it out")
    if args.launcher == "slurm":
        check_slurm(args.slurm)
    show_notices()
    name = config_name(args) or "default"
    if is_own(name):
        show = "`impresa config show own dataset.train_path=photos/ > photos.yaml`"
        raise ConfigError(f"{name}: chooses anew for each variant; {show} writes its choice, ablate photos.yaml")
    metrics = [metric for text in args.metric for metric in text.split(",")] or None
    study = make_study(name, overrides, seeds=args.seeds, metrics=metrics, design=args.design, null=args.null)
    _check_pilot(args.pilot, len(study.seeds))
    planned = plan(study)
    if args.output_dir is not None:
        check_study_dir(args.output_dir)
    if args.dry_run:
        _say_outlook(args, study, planned, args.output_dir, standing_of(different(planned), args.output_dir))
        return 0
    study_dir = args.output_dir or new_folder("ablations", name)
    with locked(study_dir):
        try:
            return _run_study(args, study, planned, study_dir)
        except KeyboardInterrupt:
            print(f"the study is not finished; `{_command(args, study_dir)}` goes on with it", file=sys.stderr)
            raise


def _run_study(args: argparse.Namespace, study: Study, planned: Sequence[PlannedRun], study_dir: Path) -> int:
    """Train what is left of a study in its folder, which is locked, and write the results."""
    from rich.console import Console

    from impresa.ablation.collect import collect
    from impresa.ablation.folder import write_record
    from impresa.ablation.report import print_result, write_results
    from impresa.ablation.runner import failed_lines

    write_record(study_dir, study, planned, command_line())
    failures = _train(args, study, planned, study_dir)
    variants = tuple(dict.fromkeys(run.variant for run in planned))
    result = collect(study, variants, planned, study_dir, failures)
    page = write_results(result, study_dir)
    print_result(result, Console())
    _say(*failed_lines(planned, failures, study_dir))
    print(f"report: {page}")
    print(study_dir)
    return FAILED_RUNS if failures else 0


def _train(args: argparse.Namespace, study: Study, planned: Sequence[PlannedRun], study_dir: Path) -> Mapping[str, str]:
    """Train what is left; returns why runs have failed, by their folders."""
    from rich.console import Console

    from impresa.ablation.progress import Progress
    from impresa.ablation.runner import StudyRunner, different, pilot_of, standing_of

    runs = different(planned, args.pilot)
    standing = standing_of(runs, study_dir)
    num_jobs = _num_jobs(args, standing)
    with Progress(Console(stderr=True), study_dir, standing, num_jobs) as progress:
        launcher = _launcher(args, study_dir, num_jobs)
        trainer = StudyRunner(study_dir, launcher, progress, num_jobs=num_jobs, any_done=bool(standing.done))
        folders = {run.folder for run in pilot_of(planned, args.pilot)}
        pilot = [run for run in standing.to_do if run.folder in folders]
        rest = [run for run in standing.to_do if run.folder not in folders]
        if pilot:
            _say(f"pilot: the first {args.pilot} seeds of the base, {len(pilot)} of which are to be trained")
            trainer.train(pilot)
            standing = standing_of(runs, study_dir)
        progress.estimate = _say_outlook(args, study, planned, study_dir, standing)
        trainer.train(rest)
    return standing.damaged | trainer.failures


def _say_outlook(
    args: argparse.Namespace, study: Study, planned: Sequence[PlannedRun], study_dir: Path | None, standing: Standing
) -> float | None:
    """Say runs, time and power of what is left; returns the estimated seconds of a run."""
    from impresa.ablation import outlook, timing
    from impresa.ablation.launchers import LocalLauncher

    done, to_do, num_jobs = standing.done, standing.to_do, _num_jobs(args, standing)
    _say(outlook.numbers(study, planned, standing))
    run_dirs = [study_dir / run.folder for run in done] if study_dir is not None else []
    estimate = timing.from_finished(run_dirs)
    config, is_local = planned[0].config, args.launcher == "local"
    if estimate is None and to_do and is_local:
        estimate = timing.from_trial(config, LocalLauncher(Path(), TRAIN_HERE, num_jobs).environment(config, slot=0))
    _say(outlook.time_line(estimate, len(to_do), num_jobs))
    if is_local and to_do and (line := outlook.threads_line(run_dirs, config, num_jobs)):
        _say(line)
    _say(*outlook.power_lines(study, planned, study_dir))
    return None if estimate is None else estimate.seconds


def _launcher(args: argparse.Namespace, study_dir: Path, num_jobs: int) -> Launcher:
    from impresa.ablation.launchers import LocalLauncher, SubmititLauncher, slurm_executor

    if args.launcher == "local":
        return LocalLauncher(study_dir, TRAIN_HERE, num_jobs)
    return SubmititLauncher(study_dir, TRAIN_IN_JOB, slurm_executor(study_dir, args.slurm))


def _num_jobs(args: argparse.Namespace, standing: Standing) -> int:
    return args.jobs or (1 if args.launcher == "local" else max(len(standing.to_do), 1))


def _check_pilot(num_pilot: int, num_seeds: int) -> None:
    if num_pilot and not 2 <= num_pilot <= num_seeds:
        fix = f"give 2 to {num_seeds}" if num_seeds > 1 else "leave it out"
        raise ConfigError(f"--pilot: is {num_pilot} of {num_seeds} seeds; {fix}")


def _command(args: argparse.Namespace, study_dir: Path) -> str:
    """The command that goes on with a study."""
    folder = [] if args.output_dir is not None else ["--output-dir", str(study_dir)]
    return shlex.join([*command_line(), *folder])


def _say(*lines: str) -> None:
    print(*map(printable, lines), sep="\n", end="\n" if lines else "", file=sys.stderr, flush=True)


def _seeds(text: str) -> int | tuple[int, ...]:
    """A number of seeds, or a list of them."""
    items = text.strip().strip("[]").split(",")
    if not all(item.strip().isdecimal() or not item.strip() for item in items) or text.strip() in ("", "0"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seeds from 1, and no list such as 1,2,3")
    numbers = tuple(int(item) for item in items if item.strip())
    return numbers if "," in text else numbers[0]


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"{text} is no setting; write it as partition=gpu")
    return key, value
