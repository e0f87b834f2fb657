"""A loss is one entry: a new kind of plain autograd is trained with all switches, and the rest asks the entry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from impresa.config.experiment import ExperimentConfig
from impresa.config.losses import LossConfig, LossType
from impresa.config.optimization import OptimizationConfig
from impresa.losses.clip import unit
from impresa.losses.contrastive import ContrastiveLoss
from impresa.losses.kinds import KINDS, LossKind
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.collapse import STEPS_AFTER_WARMUP, CollapseWatch
from impresa.training.parameter_groups import parameter_groups

B, E = 6, 16
SEEN: list[dict[str, Any]] = []


def hinge(a: Tensor, b: Tensor, logit_scale: Tensor, logit_bias: Tensor, dims: Sequence[int], **options: Any) -> Tensor:
    """A loss of nobody's, in plain autograd."""
    SEEN.append(options)
    right = 2 * torch.eye(len(a)) - 1
    logits = [logit_scale * unit(a[:, :d]) @ unit(b[:, :d]).T + logit_bias for d in dims]
    return torch.stack([(1 - right * x).relu().mean() for x in logits])


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> Any:
    new: Any = LossKind(
        name="hinge",  # type: ignore[arg-type]
        objective=hinge,
        temperature=0.5,
        has_bias=True,
        loss_at_chance=lambda batch_size: 1 - 2 / batch_size,
        lr_scale=7.0,
    )
    monkeypatch.setitem(KINDS, new.name, new)
    SEEN.clear()
    return new.name


def test_every_type_has_an_entry_of_its_name() -> None:
    assert [kind.name for kind in KINDS.values()] == list(KINDS) == list(get_args(LossType))


def test_a_new_kind_is_trained_with_matryoshka_weights_and_labels(kind: Any) -> None:
    config = LossConfig(type=kind, mrl_weight=0.4, row_chunk=3, duplicates="positive", siglip_bias=-0.3)
    loss = ContrastiveLoss(config, mrl_dimensions=(8, 4))
    assert loss.logit_scale.exp().item() == pytest.approx(2)
    inputs = {name: torch.randn(B, E, requires_grad=True) for name in ("image", "text")}
    output = loss(inputs, keys={"text": torch.tensor([0, 1, 0, 2, 3, 4])})
    whole, *prefixes = hinge(*inputs.values(), loss.logit_scale.exp(), loss.logit_bias.value, (E, 8, 4))
    torch.testing.assert_close(output.loss, whole + 0.4 * torch.stack(prefixes).mean())
    assert set(output.logs) == {"contrastive", "mrl_8", "mrl_4", "logit_scale", "logit_bias"}
    assert (SEEN[0]["row_chunk"], SEEN[0]["gather"], len(SEEN[0]["labels"].unique())) == (3, False, 5)
    output.loss.backward()
    assert all(parameter.grad.abs() > 0 for parameter in loss.parameters())


def test_optimizer_and_watch_ask_the_entry(kind: Any) -> None:
    model = nn.ModuleList([ContrastiveLoss(LossConfig(type=kind))])
    (group,) = parameter_groups(model, OptimizationConfig(lr=1e-3))
    assert (group["name"], group["peak_lr"]) == ("logits", pytest.approx(7e-3))
    config = replace(ExperimentConfig(), losses=LossConfig(type=kind))
    watch = CollapseWatch(config, warmup_steps=0)
    for step in range(1, STEPS_AFTER_WARMUP + 1):  # the loss at chance of this kind, 0.75, is recognised
        watch.after_step(
            step, [Batch(ids=["x"] * 8)], {"contrastive": torch.tensor(0.75), "mean_cosine": torch.tensor(0.0)}
        )
    assert watch.has_warned


@pytest.mark.parametrize("kind", get_args(LossType))
def test_the_loss_at_chance_is_that_of_embeddings_that_are_all_the_same(kind: Any) -> None:
    output = ContrastiveLoss(LossConfig(type=kind))({name: torch.ones(256, E) for name in ("image", "text")})
    # siglip's is 1 + ln B up to a term of 1 / B.
    assert output.loss.item() == pytest.approx(KINDS[kind].loss_at_chance(256), abs=0.003)
    assert KINDS[kind].loss_at_chance(256) >= math.log(256)
