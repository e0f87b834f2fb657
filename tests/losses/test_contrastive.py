"""InfoNCE against its formula, and the loss module with its logit scale."""

from __future__ import annotations

import math

import pytest
import torch

from impresa.config.losses import LossConfig
from impresa.errors import DataError
from impresa.losses.clip import clip_loss
from impresa.losses.contrastive import ContrastiveLoss

B, E = 6, 16


def formula(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE, term by term, in the precision of its inputs."""
    a, b = a / a.pow(2).sum(1, keepdim=True).sqrt(), b / b.pow(2).sum(1, keepdim=True).sqrt()
    odds = (scale * torch.einsum("ie,je->ij", a, b)).exp()
    right = odds.diagonal()
    return -((right / odds.sum(1)).log() + (right / odds.sum(0)).log()).mean() / 2


def pair(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = 3 * torch.randn(B, E), 0.2 * torch.randn(B, E)
    return a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_clip_loss_and_its_gradients_are_the_formula(dtype: torch.dtype, tolerance: float) -> None:
    a, b = pair(dtype)
    scale = torch.tensor(14.0, dtype=dtype, requires_grad=True)
    inputs = [a, b, scale]
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    loss, expected = clip_loss(*inputs), formula(*doubles)
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=0)
    for ours, theirs in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, doubles), strict=True):
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error < tolerance


def test_it_is_symmetric_and_starts_at_ln_b() -> None:
    a, b = pair()
    scale = torch.tensor(10.0)
    torch.testing.assert_close(clip_loss(a, b, scale), clip_loss(b, a, scale))
    torch.testing.assert_close(clip_loss(a, b, torch.tensor(0.0)), torch.tensor(math.log(B)))


def test_it_is_single_precision_under_autocast_and_for_half_embeddings() -> None:
    a, b = pair()
    scale = torch.tensor(100.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(clip_loss(a, b, scale), clip_loss(a.detach(), b.detach(), scale))
        cast = clip_loss(a, b, scale)
    torch.testing.assert_close(cast, clip_loss(a, b, scale), rtol=0, atol=0)
    half = clip_loss(a.bfloat16(), b.bfloat16(), scale)
    torch.testing.assert_close(half, clip_loss(a.bfloat16().float(), b.bfloat16().float(), scale), rtol=0, atol=0)


def test_a_zero_embedding_has_a_finite_gradient() -> None:
    a, b = torch.zeros(B, E, requires_grad=True), torch.randn(B, E)
    clip_loss(a, b, torch.tensor(100.0)).backward()
    assert a.grad.isfinite().all()


# The module


def embeddings(*modalities: str) -> dict:
    return {modality: torch.randn(B, E, requires_grad=True) for modality in modalities}


def test_the_scale_starts_at_one_over_the_temperature_and_learns() -> None:
    loss = ContrastiveLoss(LossConfig(temperature=0.07))
    assert loss.logit_scale.item() == pytest.approx(2.6593, abs=1e-4)
    output = loss(embeddings("image", "text"))
    assert output.logs["logit_scale"].item() == pytest.approx(1 / 0.07, rel=1e-5)
    output.loss.backward()
    assert loss.logit_scale.grad.abs() > 0


def test_a_fixed_temperature_is_no_parameter_but_is_saved() -> None:
    loss = ContrastiveLoss(LossConfig(temperature=0.05, learn_temperature=False))
    assert not list(loss.parameters())
    assert list(loss.state_dict()) == ["logit_scale"]
    loss.commit(1)
    assert loss.logit_scale.exp().item() == pytest.approx(20, rel=1e-4)


def test_a_learned_scale_is_clamped_at_one_hundred() -> None:
    loss = ContrastiveLoss(LossConfig())
    for value, expected in [(5.0, math.log(100)), (1.0, 1.0), (-1.0, -1.0)]:
        loss.logit_scale.data.fill_(value)
        loss.commit(1)
        assert loss.logit_scale.item() == pytest.approx(expected)


def test_a_learned_scale_has_a_limit_of_its_own_and_can_fall_from_it() -> None:
    """A start that nobody has set is no higher; a fixed temperature has nothing of it."""
    loss, inputs = ContrastiveLoss(LossConfig(max_logit_scale=10)), embeddings("image", "text")
    for stored in (None, 3.0):
        if stored is not None:
            loss.logit_scale.data.fill_(stored)
            loss.commit(1)
        output = loss(inputs)
        assert output.logs["logit_scale"].item() == pytest.approx(10)
        torch.testing.assert_close(output.loss, clip_loss(*inputs.values(), torch.tensor(10.0)))
        loss.zero_grad()
        output.loss.backward()
        assert loss.logit_scale.grad.abs() > 0
    fixed = ContrastiveLoss(LossConfig(temperature=0.05, max_logit_scale=10, learn_temperature=False))
    assert fixed(inputs).logs["logit_scale"].item() == pytest.approx(20)
    siglip = ContrastiveLoss(LossConfig(type="siglip", max_logit_scale=5))
    assert siglip.logit_scale.exp().item() == pytest.approx(5, rel=1e-5)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_similarities_are_multiplied_by_one_hundred_at_most(learned: bool, dtype: torch.dtype) -> None:
    """At the smallest temperature, before the first commit and after it, and with a scale of another run."""
    loss = ContrastiveLoss(LossConfig(temperature=0.01, learn_temperature=learned)).to(dtype)
    inputs = embeddings("image", "text")
    for stored in (None, math.log(100), 9.0):
        if stored is not None:
            loss.load_state_dict({"logit_scale": torch.tensor(stored)})
        output = loss(inputs)
        assert 97 < output.logs["logit_scale"].item() <= 100
        torch.testing.assert_close(output.loss, clip_loss(*inputs.values(), output.logs["logit_scale"]).to(output.loss))
        loss.commit(1)
        assert loss(inputs).logs["logit_scale"].item() <= 100
    if learned:  # at its limit it can still fall
        loss(inputs).loss.backward()
        assert loss.logit_scale.grad is not None
        assert loss.logit_scale.grad.abs() > 0


def test_the_weight_scales_the_loss_and_not_the_log() -> None:
    inputs = embeddings("image", "text")
    one, half = (ContrastiveLoss(LossConfig(contrastive_weight=weight))(inputs) for weight in (1.0, 0.5))
    torch.testing.assert_close(half.loss, one.loss / 2)
    torch.testing.assert_close(half.logs, one.logs)
    assert not any(value.requires_grad for value in one.logs.values())


def test_every_pair_of_the_batch_is_aligned_and_averaged() -> None:
    inputs, scale = embeddings("image", "text", "audio"), torch.tensor(1 / 0.07)
    image, text, audio = inputs["image"], inputs["text"], inputs["audio"]
    expected = (clip_loss(image, text, scale) + clip_loss(image, audio, scale) + clip_loss(text, audio, scale)) / 3
    torch.testing.assert_close(ContrastiveLoss(LossConfig())(inputs).loss, expected)
    chosen = ContrastiveLoss(LossConfig(pairs=("image-audio",)))(inputs).loss
    torch.testing.assert_close(chosen, clip_loss(image, audio, scale))


def test_a_batch_without_a_pair_is_refused() -> None:
    with pytest.raises(DataError, match="batch: has only image; one of the pairs image-text is needed"):
        ContrastiveLoss(LossConfig(pairs=("image-text",)))(embeddings("image"))
