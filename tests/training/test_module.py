from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from impresa.errors import CheckpointError, TrainingError
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.model import AlignmentOutput
from impresa.training.module import TrainingModule, mean_cosine, seed_step
from impresa.training.plan import make_plan
from impresa.training.schedule import Schedule
from impresa.training.trainer import build_trainer
from tiny_run import tiny_experiment

SGD = ("optimization.optimizer=sgd", "optimization.betas=[0,0]", "optimization.lr=1.0", "optimization.clip_grad=0")


class Slope(nn.Module):
    """The loss is the mean of weight * x: the gradient of the weight is the mean of x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0]))
        self.dropout = nn.Dropout(0.5)
        self.dropped: list[Tensor] = []
        self.commits: list[int] = []

    def forward(self, batch: Batch) -> AlignmentOutput:
        assert batch.image is not None
        if self.training:
            self.dropped.append(self.dropout(torch.ones(64)))
        loss = (self.weight * batch.image).mean()
        return AlignmentOutput(loss, {"loss": loss.detach()}, {"image": batch.image})

    def commit(self, step: int) -> None:
        self.commits.append(step)


def batch(*values: float) -> Batch:
    image = torch.tensor(values, dtype=torch.float32).unsqueeze(1)
    return Batch(ids=[f"sample{value:g}" for value in values], image=image, captions=["x"] * len(values))


def module(*overrides: str, steps: int = 4) -> TrainingModule:
    config = tiny_experiment(*SGD, *overrides)
    data: Any = SimpleNamespace(state_dict=lambda: {"epoch": 7, "next_batch": 7, "seed": 0})
    schedule = Schedule("constant", steps, 0, 0.0)
    return TrainingModule(Slope(), config, make_plan(config.trainer, steps), schedule, data)


def fit(trained: TrainingModule, steps: list[list[Batch]], *callbacks: Callback) -> Trainer:
    trainer = build_trainer(
        trained.config, None, callbacks=list(callbacks), max_epochs=1, logger=False, enable_checkpointing=False
    )
    validation = [batch(1.0, 2.0, 3.0), batch(10.0)]
    trainer.fit(trained, DataLoader(steps, batch_size=None), DataLoader(validation, batch_size=None))  # type: ignore[arg-type]
    return trainer


def weight(trained: TrainingModule) -> float:
    return trained.model.weight.item()  # type: ignore[union-attr, operator]


def test_batches_of_unequal_size_add_up_to_the_gradient_of_all_samples() -> None:
    trained = module()
    fit(trained, [[batch(1, 2, 3, 4), batch(5, 6, 7, 8), batch(12)]])
    assert weight(trained) == pytest.approx(3.0 - (36 + 12) / 9, abs=1e-6)


def test_every_step_commits_once_and_counts_from_one() -> None:
    trained = module()
    fit(trained, [[batch(1), batch(2)], [batch(1)], [batch(3), batch(1)]])
    assert trained.model.commits == [1, 2, 3]
    assert trained.step == 3


def test_the_learning_rate_of_a_step_is_that_of_the_schedule() -> None:
    trained = module(steps=4)
    trained.schedule = Schedule("linear", 4, 2, 0.0)
    fit(trained, [[batch(1)]] * 4)
    assert weight(trained) == pytest.approx(3.0 - (0.5 + 1.0 + 0.5 + 0.0))


def test_gradients_are_clipped_by_norm() -> None:
    clipped, free = module("optimization.clip_grad=0.25"), module("optimization.clip_grad=0")
    fit(clipped, [[batch(10)]])
    fit(free, [[batch(10)]])
    assert weight(clipped) == pytest.approx(3.0 - 0.25, abs=1e-5)
    assert weight(free) == pytest.approx(3.0 - 10)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_optimizer_step(value: float) -> None:
    trained = module()
    trained.model.register_forward_hook(
        lambda m, _, out: setattr(out, "loss", out.loss * value) if m.training else None
    )
    with pytest.raises(TrainingError, match=r"step 1: the loss is .*optimization\.lr"):
        fit(trained, [[batch(1)]])
    assert weight(trained) == 3.0
    assert trained.model.commits == []


def test_a_gradient_that_is_not_finite_stops_before_the_optimizer_step() -> None:
    trained = module()
    trained.model.weight.register_hook(lambda gradient: gradient * float("nan"))  # type: ignore[union-attr, operator]
    with pytest.raises(TrainingError, match="step 1: the gradient is not finite"):
        fit(trained, [[batch(1)]])
    assert weight(trained) == 3.0


def test_pixels_that_are_not_finite_are_named_as_the_cause() -> None:
    trained = module()
    bad = batch(1, 2, 3)
    assert bad.image is not None
    bad.image[1] = float("nan")
    with pytest.raises(TrainingError, match="step 1: not finite pixels in sample2;"):
        fit(trained, [[batch(5), bad]])


def test_dropout_depends_on_seed_step_and_rank_alone() -> None:
    def draw(seed: int, step: int, rank: int) -> Tensor:
        seed_step(seed, step, rank)
        return torch.rand(8)

    assert torch.equal(draw(1, 2, 3), draw(1, 2, 3))
    others = [draw(*triple) for triple in ((0, 2, 3), (1, 0, 3), (1, 2, 0), (12, 3, 0), (1, 23, 0))]
    assert not any(torch.equal(draw(1, 2, 3), other) for other in others)


def test_a_step_drops_the_same_after_any_detour() -> None:
    straight, resumed = module(), module()
    fit(straight, [[batch(1), batch(2)], [batch(1), batch(2)]])
    resumed.step = 1
    torch.manual_seed(99)
    fit(resumed, [[batch(1), batch(2)]])
    first, second, third, fourth = straight.model.dropped
    assert torch.equal(torch.stack(resumed.model.dropped), torch.stack([third, fourth]))
    assert not torch.equal(first, second)
    assert not torch.equal(first, third)


def test_the_validation_loss_is_the_mean_over_samples() -> None:
    trained = module()
    trainer = fit(trained, [[batch(0)]])
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(3.0 * 16 / 4)


def test_a_checkpoint_knows_its_step_and_its_place_in_the_data() -> None:
    class Saver(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            self.saved = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)

    trained, saver = module(steps=5), Saver()
    trained.step = 3
    fit(trained, [[batch(1)]], saver)
    assert (saver.saved["global_step"], saver.saved["epoch"]) == (4, 1)
    # 5 batches, 2 a step: 3 steps an epoch, so step 4 ended the first two batches of epoch 1.
    assert saver.saved["data"] == {"epoch": 1, "next_batch": 2, "seed": 0}


def test_mean_cosine_is_one_for_a_collapsed_batch_and_zero_for_orthogonal_rows() -> None:
    assert mean_cosine(torch.eye(4)).item() == pytest.approx(0.0, abs=1e-6)
    assert mean_cosine(torch.ones(4, 3) * torch.arange(1, 5).unsqueeze(1)).item() == pytest.approx(1.0)
    assert mean_cosine(torch.ones(1, 3)).item() == pytest.approx(0.0, abs=1e-6)


def test_a_checkpoint_leaves_out_what_is_frozen_and_nothing_else() -> None:
    trained = module()
    trained.model.frozen = nn.Linear(2, 2).requires_grad_(False)
    trained.model.register_buffer("state", torch.ones(3))
    checkpoint: dict[str, Any] = {"state_dict": trained.state_dict(), "loops": {}}
    trained.on_save_checkpoint(checkpoint)
    assert checkpoint["state_dict"].keys() == {"model.weight", "model.state"}
    before = trained.model.frozen.weight.clone()
    weights = {"model.weight": torch.tensor([7.0]), "model.state": torch.zeros(3)}
    trained.load_trained({"state_dict": weights})
    assert weight(trained) == 7.0
    assert torch.equal(trained.model.frozen.weight, before)


@pytest.mark.parametrize("names", [[], ["weight", "more"]])
def test_weights_of_another_model_are_refused(names: list[str]) -> None:
    trained = module()
    weights = {f"model.{name}": torch.ones(1) for name in names}
    for load in (trained.load_trained, trained.on_load_checkpoint):
        with pytest.raises(CheckpointError, match="does not fit the model"):
            load({"state_dict": weights, "global_step": 1})
