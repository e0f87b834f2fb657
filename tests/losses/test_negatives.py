"""Hard negatives: the formulas in float64, what a row does not see, all prefixes and tiles, and where they are used."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from impresa.config.losses import LossConfig, LossType
from impresa.losses.contrastive import ContrastiveLoss
from impresa.losses.matryoshka import matryoshka_clip_loss, matryoshka_siglip_loss
from impresa.losses.pairs import Negatives

B, Q, E = 7, 5, 16
DIMS = (16, 8, 3)
KEYS = {"image": torch.tensor([0, 0, 1, 2, 3, 4, 5]), "text": torch.tensor([10, 11, 12, 12, 13, 14, 15])}
LABELS = torch.stack([KEYS["image"], KEYS["text"]], dim=1)
NEGATIVE_KEYS = torch.tensor([99, 11, 98, 12, 99])
"""The second is the caption of row 1, whose image row 0 has too; the fourth is that of rows 2 and 3."""
HIDDEN = [(0, 1), (1, 1), (2, 3), (3, 3)]


def inputs() -> list[Tensor]:
    a, b, wrong = torch.randn(B, E), torch.randn(B, E), torch.randn(Q, E)
    return [x.double().requires_grad_() for x in (a, b, wrong, torch.tensor(7.0), torch.tensor(-2.0))]


def right_answers(labels: Tensor | None) -> Tensor:
    return torch.eye(B).bool() if labels is None else (labels[:, None] == labels).any(dim=2)


def formula(kind: LossType, d: int, labels: Tensor | None, given: list[Tensor]) -> Tensor:
    """The loss of the first d numbers, row by row."""
    a, b, wrong = (F.normalize(x[:, :d], dim=1) for x in given[:3])
    scale, bias = given[3:]
    right = right_answers(labels)
    logits = scale * a @ torch.cat([b, wrong]).T
    seen = torch.ones(B, B + Q, dtype=torch.bool)
    for i, j in HIDDEN if labels is not None else ():
        seen[i, B + j] = False
    total = torch.zeros((), dtype=torch.float64)
    for i in range(B):
        own = right[i].nonzero().squeeze(1)
        if kind == "clip":
            total = total + logits[i][seen[i]].logsumexp(0) - logits[i, own].mean()
            total = total + logits[:, i].logsumexp(0) - logits[own, i].mean()
        else:
            z = torch.where(F.pad(right[i], (0, Q)), 1.0, -1.0)
            total = total - F.logsigmoid(z * (logits[i] + bias))[seen[i]].sum()
    return total / (2 * B if kind == "clip" else B)


@pytest.mark.parametrize("row_chunk", [None, 1, 3])
@pytest.mark.parametrize(("kind", "labels"), list(product(["clip", "siglip"], [None, LABELS])))
def test_losses_and_gradients_are_the_formula(kind: LossType, labels: Tensor | None, row_chunk: int | None) -> None:
    given = inputs()
    a, b, wrong, *logits = given
    options: dict[str, Any] = {"labels": labels, "row_chunk": row_chunk, "negatives": Negatives(wrong, NEGATIVE_KEYS)}
    if kind == "clip":
        losses, used = matryoshka_clip_loss(a, b, logits[0], DIMS, **options), given[:4]
    else:
        losses, used = matryoshka_siglip_loss(a, b, *logits, DIMS, **options), given
    expected = torch.stack([formula(kind, d, labels, given) for d in DIMS])
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=0)
    weights = torch.tensor([1.0, 0.3, 2.0], dtype=torch.float64)
    theirs = torch.autograd.grad(expected @ weights, used)
    for mine, other in zip(torch.autograd.grad(losses @ weights, used), theirs, strict=True):
        assert (mine - other).norm() <= 1e-9 * other.norm()


def test_no_negatives_in_a_batch_are_none_at_all() -> None:
    a, b, wrong, scale, _ = inputs()
    nothing = Negatives(wrong[:0], NEGATIVE_KEYS[:0])
    plain, empty = (matryoshka_clip_loss(a, b, scale, DIMS, labels=LABELS, negatives=x) for x in (None, nothing))
    torch.testing.assert_close(empty, plain, rtol=0, atol=0)
    empty.sum().backward()


def test_the_loss_module_passes_them_to_the_pair_of_image_and_text_alone() -> None:
    embeddings: dict[Any, Tensor] = {name: torch.randn(B, E) for name in ("image", "text", "audio")}
    wrong = Negatives(torch.randn(Q, E), NEGATIVE_KEYS)
    for pairs, differs in ((("image-text", "image-audio"), True), (("image-audio", "text-audio"), False)):
        loss = ContrastiveLoss(LossConfig(pairs=pairs), mrl_dimensions=(8,))  # type: ignore[arg-type]
        plain, told = loss(embeddings).loss, loss(embeddings, negatives=wrong).loss
        assert bool(told > plain + 1e-3) is differs
        assert bool(told == plain) is not differs


def test_ignored_duplicates_hide_nothing() -> None:
    embeddings: dict[Any, Tensor] = {name: torch.randn(B, E) for name in ("image", "text")}
    given = [*embeddings.values(), torch.randn(Q, E)]
    for duplicates, labels in (("ignore", None), ("positive", LABELS)):
        loss = ContrastiveLoss(LossConfig(duplicates=duplicates))  # type: ignore[arg-type]
        ours = loss(embeddings, keys=KEYS, negatives=Negatives(given[2], NEGATIVE_KEYS)).loss
        doubles = [*(x.double() for x in given), loss.logit_scale.detach().double().exp(), torch.tensor(0.0)]
        torch.testing.assert_close(ours.detach().double(), formula("clip", E, labels, doubles), rtol=1e-5, atol=0)


def test_the_bias_of_the_sigmoid_loss_starts_at_its_floor_with_negatives_too() -> None:
    embeddings: dict[Any, Tensor] = {name: torch.ones(B, E) for name in ("image", "text")}
    loss, wrong = ContrastiveLoss(LossConfig(type="siglip")), Negatives(torch.ones(Q, E), None)
    least = loss(embeddings, negatives=wrong).loss
    assert loss.logit_bias is not None
    for change in (-0.1, 0.1):
        loss.logit_bias.value.data += change
        assert loss(embeddings, negatives=wrong).loss > least + 1e-4
        loss.logit_bias.value.data -= change
