"""The training loop beside a bare one: what do logging, checks, progress and the plan cost a step?

    python benchmarks/loop_overhead.py [--output loop_overhead.json] [--quick]

An alignment of two small towers on batches that are ready in memory, float32, one thread; a step takes 50 ms or more.
The bare loop does the same forward pass, backward pass, clipping, learning rate and AdamW step, and nothing else. Ours
is the loop of `impresa train` with its metrics, its progress, its watch and its check for a loss that is not finite,
but without validation and checkpoints, whose cost is the user's choice. The two take turns, ten steps each, and must
end with the same weights to the bit. Takes a minute or two.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from timing import Cost, command, largest_difference, measure, report, store
from torch import nn

from impresa.config import ExperimentConfig, load_experiment
from impresa.training.checkpoints import Checkpoints
from impresa.training.costs import CostMeter
from impresa.training.distributed import Group
from impresa.training.logs import MetricsCsv, ProgressReport, Recorder
from impresa.training.loop import Training, run_steps, seed_step
from impresa.training.monitor import Monitor
from impresa.training.parts import build_parts
from impresa.training.plan import Plan
from impresa.training.processes import GracefulStop
from impresa.training.run import set_up
from impresa.training.watchdog import Watchdog

BARE, OURS = "bare loop", "impresa"
STEPS = 10
"""Steps of a turn."""
PLAIN = ("trainer.checkpoint.save_top_k=0", "trainer.checkpoint.save_last=false")
PLAIN += ("optimization.clip_grad=1",)
FULL = ("dataset.shapes.num_train=640", "dataset.batch_size=64")
QUICK = ("dataset.shapes.num_train=40", "dataset.batch_size=4")


def prepared(config: ExperimentConfig) -> Training:
    """A training run on batches in memory; both loops start from equal ones."""
    training = set_up(config, build_parts(config, None), Group(torch.device("cpu")))
    batches: Any = list(islice(training.train_loader, STEPS))
    return replace(training, train_loader=batches, val_loader=[])  # type: ignore[arg-type]


class Steps(Plan):
    """A plan of steps alone: neither validations nor checkpoints."""

    def evaluates_after(self, step: int) -> bool:
        return False

    def saves_after(self, step: int) -> bool:
        return False


class Bare:
    """The steps themselves."""

    def __init__(self, config: ExperimentConfig) -> None:
        self.training = prepared(config)

    def turn(self) -> None:
        training, state = self.training, self.training.state
        parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        for batch in training.train_loader:
            seed_step(training.config.seed, state.step, 0)
            state.model(batch).loss.backward()
            nn.utils.clip_grad_norm_(parameters, training.config.optimization.clip_grad)
            for group in state.optimizer.param_groups:
                group["lr"] = training.schedule.learning_rate(state.step + 1, group["peak_lr"])
            state.optimizer.step()
            state.optimizer.zero_grad()
            state.step += 1
            state.model.commit(state.step)


class Ours:
    """The loop of `impresa train`, with a plan that ends after the steps of a turn."""

    def __init__(self, config: ExperimentConfig, folder: Path) -> None:
        self.training, self.folder, self.costs = prepared(config), folder, CostMeter({})

    def turn(self) -> None:
        config, state, group = self.training.config, self.training.state, self.training.group
        plan = Steps(self.training.plan.steps_per_epoch, state.step + STEPS, self.training.plan.logging)
        with Watchdog(config.trainer.timeout_minutes) as watchdog:
            run_steps(
                replace(self.training, plan=plan),
                recorder=Recorder(plan, [MetricsCsv(self.folder / "metrics.csv", state.step)]),
                costs=self.costs,
                progress=ProgressReport(plan.total_steps, shown=False),
                watch=self.training.task.watch(self.training.schedule.warmup_steps, group),
                monitor=Monitor(config.trainer, plan.total_steps),
                checkpoints=Checkpoints(config.trainer.checkpoint, self.folder, plan, group, state.checkpoint),
                stop=GracefulStop(),
                watchdog=watchdog,
            )


def compare(overrides: Sequence[str], repeats: int) -> tuple[dict[str, Cost], float]:
    """Costs of a turn of each, and the largest difference of their weights afterwards, which must be none."""
    config = load_experiment("shapes", [*PLAIN, *overrides])
    with tempfile.TemporaryDirectory() as folder:
        bare, ours = Bare(config), Ours(config, Path(folder))
        costs = measure({BARE: bare.turn, OURS: ours.turn}, repeats=repeats)
    models = [loop.training.state.model for loop in (ours, bare)]
    return costs, largest_difference(*(list(model.parameters()) for model in models), tolerance=0.0)


def main(arguments: Sequence[str] | None = None) -> None:
    given = command(__doc__).parse_args(arguments)
    torch.set_num_threads(1)
    costs, difference = compare(QUICK if given.quick else FULL, repeats=1 if given.quick else 15)
    title = f"{STEPS} steps of an alignment of small towers"
    report(title, costs, [BARE])
    overhead = costs[OURS].seconds / costs[BARE].seconds - 1
    print(f"a step takes {costs[BARE].seconds / STEPS * 1e3:.0f} ms; the loop adds {overhead:.1%}")
    found = {name: asdict(cost) for name, cost in costs.items()}
    store(given.output, {"title": title, "costs": found, "overhead": overhead, "difference": difference})


if __name__ == "__main__":
    main()
