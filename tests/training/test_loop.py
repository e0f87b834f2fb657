"""One optimizer step and one validation, with a model whose gradient is known."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from impresa.errors import CheckpointError, TrainingError
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.collapse import mean_cosine, unit_sums
from impresa.tasks.alignment.model import AlignmentOutput
from impresa.tasks.alignment.task import AlignmentTask
from impresa.training.distributed import Group
from impresa.training.loop import Training, seed_step, train_step, validate
from impresa.training.plan import make_plan
from impresa.training.schedule import Schedule
from impresa.training.state import TrainState, take_best
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
        return AlignmentOutput(loss, {"loss": loss.detach(), "twice": 2 * loss.detach()}, {"image": batch.image})

    def commit(self, step: int) -> None:
        self.commits.append(step)


def batch(*values: float) -> Batch:
    image = torch.tensor(values, dtype=torch.float32).unsqueeze(1)
    return Batch(ids=[f"sample{value:g}" for value in values], image=image, captions=["x"] * len(values))


def training(*overrides: str, steps: int = 4, schedule: Schedule | None = None) -> Training:
    config = tiny_experiment(*SGD, *overrides)
    group = Group(torch.device("cpu"))
    validation: Any = [batch(1.0, 2.0, 3.0), batch(10.0, 8.0)]
    return Training(
        config=config,
        task=AlignmentTask(config),
        train_loader=validation,
        val_loader=validation,
        plan=make_plan(config.trainer, steps),
        schedule=schedule or Schedule("constant", steps, 0, 0.0),
        group=group,
        state=TrainState(Slope(), config.optimization, group),
    )


def fit(trained: Training, steps: list[list[Batch]]) -> list[dict[str, Tensor]]:
    return [train_step(trained, batches) for batches in steps]


def weight(trained: Training) -> float:
    return trained.state.model.weight.item()  # type: ignore[union-attr, operator]


def test_batches_of_unequal_size_add_up_to_the_gradient_of_all_samples() -> None:
    trained = training()
    fit(trained, [[batch(1, 2, 3, 4), batch(5, 6, 7, 8), batch(12)]])
    assert weight(trained) == pytest.approx(3.0 - (36 + 12) / 9, abs=1e-6)


def test_every_step_commits_once_and_counts_from_one() -> None:
    trained = training()
    fit(trained, [[batch(1), batch(2)], [batch(1)], [batch(3), batch(1)]])
    assert trained.state.model.commits == [1, 2, 3]
    assert trained.state.step == 3


def test_the_learning_rate_of_a_step_is_that_of_the_schedule() -> None:
    trained = training(schedule=Schedule("linear", 4, 2, 0.0))
    fit(trained, [[batch(1)]] * 4)
    assert weight(trained) == pytest.approx(3.0 - (0.5 + 1.0 + 0.5 + 0.0))


def test_gradients_are_clipped_by_norm() -> None:
    clipped, free = training("optimization.clip_grad=0.25"), training("optimization.clip_grad=0")
    fit(clipped, [[batch(10)]])
    fit(free, [[batch(10)]])
    assert weight(clipped) == pytest.approx(3.0 - 0.25, abs=1e-5)
    assert weight(free) == pytest.approx(3.0 - 10)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_optimizer_step(value: float) -> None:
    trained = training()
    trained.state.model.register_forward_hook(
        lambda m, _, out: setattr(out, "loss", out.loss * value) if m.training else None
    )
    with pytest.raises(TrainingError, match=r"step 1: the loss is .*optimization\.lr"):
        fit(trained, [[batch(1)]])
    assert weight(trained) == 3.0
    assert trained.state.model.commits == []


def test_a_gradient_that_is_not_finite_stops_before_the_optimizer_step() -> None:
    trained = training()
    trained.state.model.weight.register_hook(lambda gradient: gradient * float("nan"))  # type: ignore[union-attr, operator]
    with pytest.raises(TrainingError, match="step 1: the gradient is not finite"):
        fit(trained, [[batch(1)]])
    assert weight(trained) == 3.0


def test_pixels_that_are_not_finite_are_named_as_the_cause() -> None:
    trained = training()
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
    straight, resumed = training(), training()
    fit(straight, [[batch(1), batch(2)], [batch(1), batch(2)]])
    resumed.state.step = 1
    torch.manual_seed(99)
    fit(resumed, [[batch(1), batch(2)]])
    first, second, third, fourth = straight.state.model.dropped
    assert torch.equal(torch.stack(resumed.state.model.dropped), torch.stack([third, fourth]))
    assert not torch.equal(first, second)
    assert not torch.equal(first, third)


def test_the_validation_loss_is_the_mean_over_samples() -> None:
    assert validate(training())["val_loss"] == pytest.approx(3.0 * 24 / 5)
    assert validate(training(), num_batches=1)["val_loss"] == pytest.approx(3.0 * 6 / 3)


def test_a_sample_that_is_alone_in_its_batch_has_nothing_to_be_told_from_and_does_not_count() -> None:
    trained = training()
    validation: Any = [batch(1.0, 2.0, 3.0), batch(10.0)]
    assert validate(replace(trained, val_loader=validation))["val_loss"] == pytest.approx(3.0 * 6 / 3)


def test_the_logs_of_a_step_are_those_of_all_its_batches() -> None:
    parts = [batch(1, 2, 3), batch(-4), batch(5, 6)]
    logs = fit(training(), [parts])[0]
    assert logs["loss"].item() == logs["twice"].item() / 2 == pytest.approx(3.0 * 13 / 6)
    together = fit(training(), [[batch(1, 2, 3, -4, 5, 6)]])[0]
    assert logs["mean_cosine"].item() == pytest.approx(together["mean_cosine"].item())
    assert logs["mean_cosine"].item() == pytest.approx((4**2 - 6) / 30)


def test_a_validation_changes_nothing_but_what_it_measures() -> None:
    trained = training("optimization.ema_decay=0.5")
    fit(trained, [[batch(1)], [batch(1)]])
    model, average = trained.state.model, trained.state.average
    model.frozen = nn.Dropout(0.5).eval()
    modes = [module.training for module in model.modules()]
    seen: list[tuple[bool, float]] = []
    model.register_forward_hook(lambda m, *_: seen.append((m.training, m.weight.item())))
    before = weight(trained)
    validate(trained)
    assert average is not None
    assert seen == [(False, average.state_dict()["weight"].item())] * 2
    assert seen[0][1] != before
    assert weight(trained) == before
    assert [module.training for module in model.modules()] == modes


def test_mean_cosine_is_one_for_a_collapsed_batch_and_zero_for_orthogonal_rows() -> None:
    collapsed = torch.ones(4, 3) * torch.arange(1, 5).unsqueeze(1)
    for rows, expected in ((torch.eye(4), 0.0), (collapsed, 1.0), (torch.ones(1, 3), 0.0)):
        assert mean_cosine(unit_sums(rows)).item() == pytest.approx(expected, abs=1e-6)


def test_a_checkpoint_leaves_out_what_is_frozen_and_nothing_else() -> None:
    state = training().state
    state.model.frozen = nn.Linear(2, 2).requires_grad_(False)
    state.model.register_buffer("state", torch.ones(3))
    checkpoint = state.checkpoint()
    assert checkpoint["model"].keys() == {"weight", "state"}
    before = state.model.frozen.weight.clone()  # type: ignore[union-attr, operator]
    take_best(state.model, {**checkpoint, "model": {"weight": torch.tensor([7.0]), "state": torch.zeros(3)}})
    assert state.model.weight.item() == 7.0  # type: ignore[union-attr, operator]
    assert torch.equal(state.model.frozen.weight, before)  # type: ignore[union-attr, arg-type]


def test_a_restored_state_goes_on_as_the_one_that_was_kept() -> None:
    settings = ("optimization.ema_decay=0.5", "optimization.optimizer=adamw", "optimization.betas=[0.9,0.99]")
    straight, resumed = training(*settings), training(*settings)
    fit(straight, [[batch(1)], [batch(2)]])
    resumed.state.restore(deepcopy(straight.state.checkpoint()))
    assert resumed.state.step == 2
    for trained in (straight, resumed):
        fit(trained, [[batch(3)]])
    ours, theirs = resumed.state.checkpoint(), straight.state.checkpoint()
    for name in ("model", "average"):
        assert torch.equal(ours[name]["weight"], theirs[name]["weight"])


def with_loss_scale(scale: float) -> Training:
    """With the scaler that `16-mixed` has on a GPU."""
    trained = training("optimization.precision=16-mixed")
    trained.state.precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return trained


def test_a_loss_scale_leaves_the_step_as_it_is_and_is_kept() -> None:
    plain, scaled, resumed = training(), with_loss_scale(64.0), with_loss_scale(2.0)
    for trained in (plain, scaled):
        fit(trained, [[batch(1, 2, 3), batch(5)]])
    assert weight(scaled) == weight(plain)
    assert plain.state.checkpoint()["scaler"] is None
    resumed.state.restore(deepcopy(scaled.state.checkpoint()))
    assert resumed.state.precision.scaler.get_scale() == 64.0


def test_an_overflow_of_float16_skips_the_step_and_lowers_the_scale() -> None:
    trained = with_loss_scale(64.0)
    trained.state.model.weight.register_hook(lambda gradient: gradient * float("inf"))  # type: ignore[union-attr, operator]
    fit(trained, [[batch(1)]])
    assert weight(trained) == 3.0
    assert trained.state.precision.scaler.get_scale() == 32.0


@pytest.mark.parametrize("names", [[], ["weight", "more"]])
def test_weights_of_another_model_are_refused(names: list[str]) -> None:
    state = training().state
    checkpoint = {**state.checkpoint(), "model": {name: torch.ones(1) for name in names}}
    for load in (partial(take_best, state.model), state.restore):
        with pytest.raises(CheckpointError, match="does not fit the model"):
            load(checkpoint)
