"""Training by the optimizers that are not torch's plain ones goes down, and on from a checkpoint to the bit."""

from __future__ import annotations

import copy
from itertools import islice
from typing import Any

import pytest
import torch

from impresa.config.experiment import ExperimentConfig
from impresa.errors import CheckpointError
from impresa.training.distributed import join_group
from impresa.training.loop import Training, steps_of, train_step
from impresa.training.parts import build_parts
from impresa.training.run import set_up
from tiny_run import tiny_experiment


def training_of(config: ExperimentConfig) -> tuple[Training, list[Any]]:
    training = set_up(config, build_parts(config, None), join_group(config.trainer))
    return training, list(islice(steps_of(training.train_loader, 1), 6))


@pytest.mark.parametrize("name", ["muon", "adamw8bit"])
def test_a_run_goes_on_from_its_checkpoint_to_the_bit(name: str) -> None:
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    wide = ("vision_encoder.dim=64", "vision_encoder.memory.enabled=false")  # moments of eight bits need a large matrix
    config = tiny_experiment(f"optimization.optimizer={name}", "optimization.warmup_epochs=0", *wide)
    straight, steps = training_of(config)
    losses = [train_step(straight, step)["loss"].item() for step in steps[:3]]
    stored = copy.deepcopy(straight.state.checkpoint())
    resumed, _ = training_of(config)
    plain, _ = training_of(tiny_experiment("optimization.warmup_epochs=0", *wide))
    resumed.state.restore(stored)
    for step in steps[3:]:
        for training in (straight, resumed):
            losses.append(train_step(training, step)["loss"].item())
    assert losses[3::2] == losses[4::2]
    assert all(
        torch.equal(one, two)
        for one, two in zip(straight.state.model.parameters(), resumed.state.model.parameters(), strict=True)
    )
    first_of_plain = [train_step(plain, step)["loss"].item() for step in steps[:3]]
    assert first_of_plain[0] == losses[0]
    assert first_of_plain[2] != losses[2]
    with pytest.raises(CheckpointError, match="does not fit the model"):
        plain.state.restore(stored)
