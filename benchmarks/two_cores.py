"""One training shared by two processes on two cores, against one process on one core: samples per second.

    python benchmarks/two_cores.py [--output two_cores.json] [--quick]

`impresa train shapes trainer.devices=1` and `trainer.devices=2` over gloo, each process with a core and a thread, the
same samples in each step and the same numbers out of it (the benchmark compares the last loss). Samples per second are
those that the run logs, the median over the steps after the first third; start, validation and checkpoints are not
among them. The two take turns; the figure is the median over rounds of the ratio. Needs two idle cores for three
minutes: what else runs there is counted as ours.
"""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from timing import command, store

FULL = ("trainer.max_steps=90", "dataset.shapes.num_train=12000")
QUICK = ("trainer.max_steps=3", "dataset.shapes.num_train=64", "dataset.shapes.num_val=8", "dataset.shapes.num_test=8")
ALWAYS = ("trainer.accelerator=cpu", "losses.gather_distributed=true", "trainer.logging.log_interval=1")
TOLERANCE = 1e-3
"""Of the last loss, relative: sums in another order, over all steps."""


def train(folder: Path, num_processes: int, batch_size: int, overrides: Sequence[str]) -> tuple[float, float]:
    """Train once; returns samples per second and the last training loss."""
    cores = sorted(os.sched_getaffinity(0))[:num_processes]
    words = (
        *overrides,
        *ALWAYS,
        f"trainer.devices={num_processes}",
        f"dataset.batch_size={batch_size // num_processes}",
    )
    done = subprocess.run(
        [sys.executable, "-m", "impresa", "train", "shapes", *words, "--output-dir", str(folder)],
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"the training has failed: {done.stderr[-500:]}")
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train_loss"]]
    speeds = [float(row["samples_per_second"]) for row in rows[len(rows) // 3 :]]
    return statistics.median(speeds), float(rows[-1]["train_loss"])


def main(arguments: Sequence[str] | None = None) -> None:
    args = command(__doc__).parse_args(arguments)
    overrides, batch_size, rounds = (QUICK, 16, 1) if args.quick else (FULL, 128, 3)
    speeds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        for number in range(rounds):
            losses = []
            for processes in (1, 2) if number % 2 else (2, 1):
                folder = Path(name) / f"{number}-{processes}"
                speed, loss = train(folder, processes, batch_size, overrides)
                speeds[processes].append(speed)
                losses.append(loss)
            if abs(losses[0] - losses[1]) > TOLERANCE * abs(losses[0]):
                raise SystemExit(f"the losses differ: {losses[0]} and {losses[1]}")
    ratio = statistics.median(two / one for one, two in zip(speeds[1], speeds[2], strict=True))
    one, two = (statistics.median(speeds[number]) for number in (1, 2))
    print(f"{one:.0f} samples/s by one process, {two:.0f} by two: {ratio:.2f} times")
    store(args.output, {"ratio": ratio, "samples_per_second": speeds, "batch_size": batch_size})


if __name__ == "__main__":
    main()
