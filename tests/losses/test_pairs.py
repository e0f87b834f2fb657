"""Which embeddings are compared with which: samples that lack a modality, and captions that are the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from impresa.config.losses import LossConfig
from impresa.losses.clip import clip_loss
from impresa.losses.contrastive import ContrastiveLoss
from impresa.losses.pairs import Embedded

B, E = 8, 16
SCALE = torch.tensor(1 / 0.07)


def embeddings(*modalities: str) -> dict[str, Tensor]:
    return {name: torch.randn(B, E, requires_grad=True) for name in modalities}


def test_samples_without_a_modality_are_left_out_of_its_pairs() -> None:
    inputs = embeddings("image", "text", "audio")
    has_audio = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0]).bool()
    has_text = torch.tensor([1, 1, 0, 1, 1, 1, 1, 1]).bool()
    image, text, audio = inputs.values()
    both = has_audio & has_text
    expected = (
        clip_loss(image[has_text], text[has_text], SCALE)
        + clip_loss(image[has_audio], audio[has_audio], SCALE)
        + clip_loss(text[both], audio[both], SCALE)
    ) / 3
    loss = ContrastiveLoss(LossConfig())(inputs, present={"audio": has_audio, "text": has_text}).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert not audio.grad[~has_audio].any()
    assert audio.grad[has_audio].any(dim=1).all()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_modality_that_no_sample_has_adds_nothing(kind: str) -> None:
    inputs = embeddings("image", "text", "audio")
    loss = ContrastiveLoss(LossConfig(type=kind))
    nobody = {"audio": torch.zeros(B, dtype=torch.bool)}
    both = loss(inputs, present=nobody).loss
    without = loss({name: inputs[name] for name in ("image", "text")}).loss
    torch.testing.assert_close(3 * both, without)
    both.backward()
    assert all(x.grad.isfinite().all() for x in inputs.values())


def keys(**of_modality: str) -> dict[Embedded, Tensor]:
    """A key for each character: equal characters are equal images, captions or sounds."""
    return {name: torch.tensor([*map(ord, text)]) for name, text in of_modality.items()}


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_duplicates_can_be_right_answers(kind: str) -> None:
    """Captions that are the same have the same embedding: only as positives can the loss fall to its least value."""
    texts = keys(text="oTo3oT45")
    axes = torch.eye(E)[texts["text"].unique(return_inverse=True)[1]]
    inputs = {"image": axes, "text": axes}
    found = {}
    for duplicates in ("ignore", "positive"):
        loss = ContrastiveLoss(LossConfig(type=kind, duplicates=duplicates, siglip_bias=-50.0, temperature=0.01))
        found[duplicates] = loss(inputs, keys=texts).logs["contrastive"].item()
    if kind == "clip":  # ln 3, 1/3 each, is the least for three answers
        least = (3 * torch.tensor(3.0).log() + 2 * torch.tensor(2.0).log()) / B
        assert found["positive"] == pytest.approx(least.item(), rel=1e-5)
        distinct = ContrastiveLoss(LossConfig(duplicates="positive"))
        torch.testing.assert_close(distinct(inputs, keys=keys(text="abcdefgh")).loss, clip_loss(axes, axes, SCALE))
    else:
        assert found["positive"] < 1e-5
        assert found["ignore"] > 10


def test_duplicates_among_samples_that_lack_a_modality() -> None:
    inputs, loss = embeddings("image", "text"), ContrastiveLoss(LossConfig(type="siglip", duplicates="positive"))
    texts, has_text = keys(text="ababcdde"), torch.tensor([1, 0, 1, 1, 0, 1, 1, 1]).bool()
    found = loss(inputs, present={"text": has_text}, keys=texts).loss
    kept = {name: x[has_text] for name, x in inputs.items()}
    torch.testing.assert_close(found, loss(kept, keys={"text": texts["text"][has_text]}).loss)


SAME_IMAGES, SAME_TEXTS, SAME_SOUNDS = "AABBBCDE", "abbcdedf", "12131415"
"""Image A goes with captions a and b, B with b, c and d: an image of A is right for caption b of B, but not for c."""


def right(one: str, other: str) -> Tensor:
    """(B, B) where image (or text, or sound) i belongs to the other of sample j."""
    return torch.tensor([[one[i] == one[j] or other[i] == other[j] for j in range(B)] for i in range(B)])


def by_the_formula(kind: str, a: Tensor, b: Tensor, is_right: Tensor, bias: float) -> Tensor:
    """Term by term, in float64."""
    a, b = (x.double() / x.double().norm(dim=1, keepdim=True) for x in (a, b))
    x = SCALE.double() * a @ b.T
    if kind == "siglip":
        return (1 + torch.exp(-torch.where(is_right, 1.0, -1.0) * (x + bias))).log().sum() / B
    terms = []
    for logits, wanted in ((x, is_right), (x.T, is_right.T)):
        for row, of_row in zip(logits, wanted, strict=True):
            terms.append(-(row - row.exp().sum().log())[of_row].mean())
    return torch.stack(terms).sum() / (2 * B)


@pytest.mark.parametrize("row_chunk", [None, 3])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_equal_images_and_equal_captions_are_right_answers_by_the_formula(kind: str, row_chunk: int | None) -> None:
    inputs = embeddings("image", "text")
    config = LossConfig(type=kind, temperature=0.07, siglip_bias=-2.0, row_chunk=row_chunk)
    found = ContrastiveLoss(config).double()(
        {name: x.double() for name, x in inputs.items()}, keys=keys(image=SAME_IMAGES, text=SAME_TEXTS)
    )
    expected = by_the_formula(kind, *inputs.values(), right(SAME_IMAGES, SAME_TEXTS), -2.0)
    torch.testing.assert_close(found.loss, expected, rtol=1e-7, atol=0)  # the scale is stored in float32
    ours, theirs = (torch.autograd.grad(loss, list(inputs.values())) for loss in (found.loss, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_each_pair_is_decided_by_its_own_two_modalities() -> None:
    inputs = embeddings("image", "text", "audio")
    names = {"image": SAME_IMAGES, "text": SAME_TEXTS, "audio": SAME_SOUNDS}
    for one, other in (("image", "text"), ("image", "audio"), ("text", "audio")):
        found = ContrastiveLoss(LossConfig(pairs=(f"{one}-{other}",)))(inputs, keys=keys(**names)).loss
        expected = by_the_formula("clip", inputs[one], inputs[other], right(names[one], names[other]), 0.0)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_rows_of_one_image_are_no_negatives_by_default_and_are_when_asked() -> None:
    inputs, same = embeddings("image", "text"), keys(image="AAAABBBB", text="abcdefgh")
    plain = clip_loss(*inputs.values(), SCALE)
    torch.testing.assert_close(ContrastiveLoss(LossConfig(duplicates="ignore"))(inputs, keys=same).loss, plain)
    assert not torch.isclose(ContrastiveLoss(LossConfig())(inputs, keys=same).loss, plain)
    different = ContrastiveLoss(LossConfig())(inputs, keys=keys(image="ABCDEFGH", text="abcdefgh")).loss
    assert torch.equal(different, ContrastiveLoss(LossConfig(duplicates="ignore"))(inputs).loss)  # to the bit
