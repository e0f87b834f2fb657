"""The sigmoid loss against its formula, and where its bias starts."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor

from impresa.config.losses import LossConfig
from impresa.losses.contrastive import ContrastiveLoss
from impresa.losses.siglip import siglip_loss

B, E = 6, 16


def formula(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The loss, pair by pair, in the precision of its inputs."""
    total = torch.zeros((), dtype=a.dtype)
    for i in range(len(a)):
        for j in range(len(b)):
            cosine = (a[i] @ b[j]) / (a[i].norm() * b[j].norm())
            z = 1 if i == j else -1
            total = total + (1 + (-z * (scale * cosine + bias)).exp()).log()
    return total / len(a)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_siglip_loss_and_its_gradients_are_the_formula(dtype: torch.dtype, tolerance: float) -> None:
    inputs = [torch.randn(B, E), 5 * torch.randn(B, E), torch.tensor(10.0), torch.tensor(-2.0)]
    inputs = [x.to(dtype).requires_grad_() for x in inputs]
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    loss, expected = siglip_loss(*inputs), formula(*doubles)
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=0)
    for ours, theirs in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, doubles), strict=True):
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error < tolerance


# Where the bias starts


def embeddings(batch: int, alike: float, *modalities: str) -> dict[str, Tensor]:
    """Random embeddings with a direction in common, as fresh towers give them."""
    common = alike * torch.randn(E)
    return {name: common + torch.randn(batch, E) for name in modalities or ("image", "text")}


def siglip(**losses: object) -> ContrastiveLoss:
    return ContrastiveLoss(LossConfig(type="siglip", **losses))


def test_the_scale_starts_at_ten_unless_a_temperature_is_given() -> None:
    assert siglip().logit_scale.exp().item() == pytest.approx(10)
    assert siglip(temperature=0.05).logit_scale.exp().item() == pytest.approx(20)


def test_an_automatic_bias_starts_at_the_floor_with_equal_samples_too() -> None:
    """Two images with two captions each, one of which they share: ten of sixteen answers are right."""
    inputs = {name: torch.ones(4, E) for name in ("image", "text")}
    keys = {"image": torch.tensor([1, 1, 2, 2]), "text": torch.tensor([1, 2, 2, 3])}
    loss = siglip()
    logs = loss(inputs, keys=keys).logs
    assert logs["logit_bias"].item() == pytest.approx(math.log(10 / 6) - 10, abs=1e-5)
    for wrong in (-0.1, 0.1):
        loss.logit_bias.value.data += wrong
        assert loss(inputs, keys=keys).logs["contrastive"] > logs["contrastive"] + 1e-4
        loss.logit_bias.value.data -= wrong


@pytest.mark.parametrize("batch", [2, 128])
def test_an_automatic_bias_starts_the_loss_at_its_floor(batch: int) -> None:
    inputs = {name: torch.ones(batch, E) for name in ("image", "text")}
    inputs["text"][:, E // 2 :] *= -0.5
    loss = siglip()
    logs = loss(inputs).logs
    cosine = torch.cosine_similarity(inputs["image"][0], inputs["text"][0], dim=0)
    assert logs["logit_bias"].item() == pytest.approx(-math.log(batch - 1) - 10 * cosine.item(), abs=1e-5)
    p = 1 / batch
    floor = -math.log(p) - (batch - 1) * math.log(1 - p)
    assert logs["contrastive"].item() == pytest.approx(floor, rel=1e-5)
    for wrong in (-0.1, 0.1):  # it is the least that a bias can give
        loss.logit_bias.value.data += wrong
        assert loss(inputs).logs["contrastive"].item() > floor + 1e-4
        loss.logit_bias.value.data -= wrong


def test_only_the_first_training_batch_sets_it() -> None:
    loss = siglip()
    loss(embeddings(32, 1.0))
    first = loss.logit_bias.value.item()
    loss(embeddings(8, 3.0))
    assert loss.logit_bias.value.item() == first
    again = siglip()
    again.load_state_dict(loss.state_dict())
    again(embeddings(8, 3.0))
    assert again.logit_bias.value.item() == first


def test_an_evaluation_before_training_sees_the_floor_and_leaves_no_trace() -> None:
    loss, inputs = siglip(), embeddings(32, 1.0)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    evaluated = loss.eval()(inputs).loss
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())
    torch.testing.assert_close(evaluated, loss.train()(inputs).loss)


def test_with_several_pairs_it_starts_in_their_middle() -> None:
    inputs, loss = embeddings(32, 1.0, "image", "text", "audio"), siglip()
    loss(inputs)
    starts = []
    for names in (("image", "text"), ("image", "audio"), ("text", "audio")):
        one = siglip()
        one({name: inputs[name] for name in names})
        starts.append(one.logit_bias.value.item())
    assert loss.logit_bias.value.item() == pytest.approx(sum(starts) / 3, rel=1e-5)


def test_scale_and_bias_learn_and_a_fixed_temperature_does_not() -> None:
    loss = siglip()
    loss(embeddings(32, 0.0)).loss.backward()
    assert loss.logit_scale.grad.abs() > 0
    assert loss.logit_bias.value.grad.abs() > 1e-6
    assert [name for name, _ in siglip(learn_temperature=False).named_parameters()] == ["logit_bias.value"]


@pytest.mark.parametrize(
    ("bias", "batch", "warns"), [(-10.0, 64, True), (-8.0, 64, True), (-5.0, 64, False), (-10.0, 2048, False)]
)
def test_a_bias_for_large_batches_is_warned_of_once_in_small_ones(
    bias: float, batch: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    loss = siglip(siglip_bias=bias)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            loss(embeddings(batch, 0.0))
    assert loss.logit_bias.value.item() == bias
    assert len(caplog.messages) == warns
    assert not warns or caplog.messages[0].startswith(
        f"losses.siglip_bias: {bias:g} is for batches of tens of thousands"
    )
