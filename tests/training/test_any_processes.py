"""The same run on any number of processes: order, draws, losses and weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from impresa.config import ExperimentConfig
from impresa.run_dir.layout import WEIGHTS
from impresa.training import loop
from impresa.training.run import train
from killed import without_end
from run_metrics import numbers
from tiny_run import tiny_experiment
from tiny_vlm import tiny_vlm
from two_processes import in_two_processes

# 21 samples in steps of 8: the last step of an epoch has 5, less than a full part for each of four processes.
COMMON = (
    *("dataset.shapes.num_train=21", "trainer.max_steps=50", "trainer.epochs=30", "trainer.logging.log_interval=1"),
    *("dataset.eval_batch_size=8", "trainer.logging.save_interval=100", "trainer.checkpoint.save_top_k=0"),
    *("trainer.logging.eval_interval=100", "trainer.devices=auto"),
    # Adam divides by gradients that are zero but for rounding, as those of the keys' biases are.
    *("optimization.optimizer=sgd", "optimization.lr=5e-3"),
)
NO_DROPOUT = ("vision_encoder.drop_rate=0", "text_encoder.drop_rate=0")
ALIGNMENT = (*COMMON, *NO_DROPOUT, "dataset.augmentation=strong", "dataset.caption_dropout=0.2")
MRL = ("vision_encoder.use_mrl=true", "vision_encoder.mrl_dimensions=[8,4]")
GATHERED = ("losses.gather_distributed=true",)


def experiment(kind: str, batch_size: int, accumulate: int, *more: str) -> ExperimentConfig:
    """A run of a kind, with batches of this size, so many of them in a step."""
    sizes = (*more, f"dataset.batch_size={batch_size}", f"trainer.accumulate_grad_batches={accumulate}")
    if kind == "answers":
        return tiny_vlm(*COMMON, "decoder.recursion.dropout=0", *sizes)
    of_kind = {
        "gathered": (*GATHERED, *MRL, "vision_encoder.memory.memory_init=features"),
        "one dimension": (*GATHERED, *MRL, "losses.sample_single_mrl_dim=true", "losses.type=siglip"),
        "own": (*MRL, "losses.type=siglip"),
    }
    return tiny_experiment(*ALIGNMENT, *of_kind[kind], *sizes)


SIZES = {
    "gathered": {1: (8, 1), 2: (4, 1), 4: (2, 1)},
    "one dimension": {1: (4, 2), 2: (2, 2), 4: (1, 2)},
    "own": {1: (2, 4), 2: (2, 2), 4: (2, 1)},
    "answers": {1: (4, 2), 2: (4, 1), 4: (2, 1)},
}
"""By kind of run and number of processes: samples of a batch, batches of a step; always 8 samples in a step."""


@contextmanager
def noting_samples(path: Path) -> Iterator[None]:
    """Write each step's number, from 0, and each of its samples to a file, before the step is made."""
    real = loop.train_step

    def step(training: Any, batches: Any) -> Any:
        with path.open("a") as file:
            file.writelines(f"{training.state.step} {id}\n" for batch in batches for id in batch.ids)
        return real(training, batches)

    loop.train_step = step  # type: ignore[assignment]
    try:
        yield
    finally:
        loop.train_step = real  # type: ignore[assignment]


def train_all(rank: int, folder: Path, count: int) -> None:
    """One run of each kind."""
    without_end()
    for kind, sizes in SIZES.items():
        with noting_samples(folder / f"{kind}.{rank}"):
            train(experiment(kind, *sizes[count]), folder / kind, command=[])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By number of processes: the folder of the runs."""
    folders = {count: tmp_path_factory.mktemp(f"runs{count}") for count in (1, 2, 4)}
    for count, folder in folders.items():
        in_two_processes(train_all, folder, folder, count, start="fork", count=count)
    return folders


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("kind", list(SIZES))
def test_losses_and_weights_are_those_of_one_process(kind: str, count: int, runs: Any) -> None:
    one, several = (runs[number] / kind for number in (1, count))
    losses, others = (numbers(run, "train_loss", "val_loss") for run in (one, several))
    assert sum("train_loss" in row for row in losses) == 50
    assert others == [pytest.approx(row, abs=1e-6, rel=1e-6) for row in losses]
    weights, other = (load_file(run / WEIGHTS) for run in (one, several))
    assert weights.keys() == other.keys()
    for name, value in weights.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", list(SIZES))
def test_each_step_has_the_same_samples(kind: str, runs: Any) -> None:
    one, two, four = (
        sorted(line for path in runs[count].glob(f"{kind}.*") for line in path.read_text().splitlines())
        for count in (1, 2, 4)
    )
    assert one == two == four
    assert len(set(one)) == len(one) == 16 * 21 + 8 * 2  # of the 50 steps, three to an epoch
