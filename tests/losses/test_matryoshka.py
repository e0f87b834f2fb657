"""The fast Matryoshka losses against one plain loss per prefix: values, gradients, work and memory."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from impresa.losses import matryoshka
from impresa.losses.clip import EPS, clip_loss, unit
from impresa.losses.matryoshka import matryoshka_clip_loss, matryoshka_siglip_loss
from impresa.losses.pairs import Negatives
from impresa.losses.siglip import siglip_loss

B, E = 22, 24
DIMS = (12, 24, 3, 7)
WEIGHTS = (0.5, 1.0, 0.2, 0.7)
CHUNKS = (None, 5, 22, 100)


def inputs(dtype: torch.dtype = torch.float64, batch: int = B, width: int = E) -> list[Tensor]:
    """Related embeddings of rather different lengths, a scale and a bias."""
    base = torch.randn(batch, width)
    lengths = torch.logspace(-2, 2, batch)[:, None]
    a, b = lengths * (base + torch.randn(batch, width)), base + torch.randn(batch, width)
    return [x.to(dtype).requires_grad_() for x in (a, b, torch.tensor(9.0), torch.tensor(-2.5))]


def weighted(losses: Tensor) -> Tensor:
    return (losses * torch.tensor(WEIGHTS, dtype=losses.dtype)).sum()


def fast(kind: str, x: list[Tensor], dims: tuple[int, ...] = DIMS, **options: object) -> Tensor:
    if kind == "clip":
        return matryoshka_clip_loss(*x[:3], dims, **options)
    return matryoshka_siglip_loss(*x, dims, **options)


def plain(kind: str, x: list[Tensor], dims: tuple[int, ...] = DIMS) -> Tensor:
    a, b, *rest = x
    if kind == "clip":
        return torch.stack([clip_loss(a[:, :d], b[:, :d], rest[0]) for d in dims])
    return torch.stack([siglip_loss(a[:, :d], b[:, :d], *rest) for d in dims])


def with_labels(kind: str, x: list[Tensor], labels: Tensor) -> Tensor:
    """The definition with labels, one prefix after the other."""
    a, b, scale, bias = x
    same = (labels[:, None] == labels).any(dim=2)
    losses = []
    for d in DIMS:
        cosines = unit(a[:, :d]) @ unit(b[:, :d]).T
        if kind == "clip":
            target = same.to(cosines) / same.sum(1, keepdim=True)  # the same for columns, for it is symmetric
            losses.append((F.cross_entropy(scale * cosines, target) + F.cross_entropy(scale * cosines.T, target)) / 2)
        else:
            losses.append(-F.logsigmoid((2.0 * same - 1) * (scale * cosines + bias)).sum() / len(a))
    return torch.stack(losses)


def gradients(losses: Tensor, x: list[Tensor]) -> list[Tensor]:
    return [g for g in torch.autograd.grad(weighted(losses), x, allow_unused=True) if g is not None]


def assert_same(kind: str, ours: Tensor, theirs: Tensor, x: list[Tensor], tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=0)
    x = x[:3] if kind == "clip" else x
    for mine, other in zip(gradients(ours, x), gradients(theirs, x), strict=True):
        assert (mine - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("row_chunk", CHUNKS)
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_values_and_gradients_are_those_of_one_loss_per_prefix(kind: str, row_chunk: int | None) -> None:
    x = inputs()
    assert_same(kind, fast(kind, x, row_chunk=row_chunk), plain(kind, x), x, 1e-12)


@pytest.mark.parametrize("dims", [DIMS, (24,), (3, 4, 5), (24, 2, 1)])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_large_batches_keep_the_wide_prefixes_only(
    kind: str, dims: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matryoshka, "SMALLEST_TILE", 4)  # 22 rows become 2 x 2 tiles
    x, weights = inputs(), torch.arange(1.0, len(dims) + 1, dtype=torch.float64)
    ours, theirs = fast(kind, x, dims), plain(kind, x, dims)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    x = x[:3] if kind == "clip" else x
    expected = torch.autograd.grad(weights @ theirs, x)
    torch.testing.assert_close(torch.autograd.grad(weights @ ours, x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("row_chunk", [None, 64])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_single_precision_is_good_to_five_digits(kind: str, row_chunk: int | None) -> None:
    torch.manual_seed(1)
    x = inputs(torch.float32, batch=200, width=512)
    dims = (512, 256, 64, 32)
    assert_same(kind, fast(kind, x, dims, row_chunk=row_chunk), plain(kind, x, dims), x, 1e-5)


@pytest.mark.parametrize("row_chunk", [None, 5])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_equal_labels_are_right_answers(kind: str, row_chunk: int | None) -> None:
    x, labels = inputs(), torch.stack([torch.randint(0, 9, (B,)), torch.randint(0, 20, (B,))], dim=1)
    assert_same(kind, fast(kind, x, labels=labels, row_chunk=row_chunk), with_labels(kind, x, labels), x, 1e-12)
    alone = fast(kind, x, labels=torch.randperm(B)[:, None])
    torch.testing.assert_close(alone, fast(kind, x), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_gradcheck(kind: str) -> None:
    x, labels = inputs(batch=4, width=5), torch.tensor([[0, 1], [1, 2], [1, 3], [2, 3]])
    x[0].data /= x[0].data.norm(dim=1, keepdim=True)  # finite differences want sizes near one
    for options in ({}, {"labels": labels, "row_chunk": 3}):
        losses = partial(check, kind, options)
        torch.autograd.gradcheck(losses, x[: 3 if kind == "clip" else 4])


def check(kind: str, options: dict[str, object], *x: Tensor) -> Tensor:
    return fast(kind, list(x), (5, 2), **options)


def multiplications() -> FlopCounterMode:
    """Counts what matrix products cost; the counter does not know of the ones that add to a tensor in place."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: product})


def product(_: object, left: tuple[int, ...], right: tuple[int, ...], **__: object) -> int:
    return 2 * left[0] * left[1] * right[1]


def test_the_full_width_alone_is_the_plain_loss() -> None:
    x = inputs()
    torch.testing.assert_close(fast("clip", x, (E,))[0], clip_loss(*x[:3]), rtol=1e-12, atol=0)


def test_what_no_prefix_covers_gets_no_gradient() -> None:
    x = inputs()
    grad_a, grad_b = torch.autograd.grad(fast("clip", x, (7, 3)).sum(), x[:2])
    assert not grad_a[:, 7:].any()
    assert not grad_b[:, 7:].any()
    assert grad_a[:, :7].all()


def test_a_frozen_side_gets_no_gradient_and_costs_no_work() -> None:
    x = inputs()
    expected = torch.autograd.grad(fast("clip", x).sum(), x[0])[0]
    a, b, scale = x[0], x[1].detach(), x[2].detach()
    with multiplications() as work:
        loss = fast("clip", [a, b, scale]).sum()
        loss.backward()
    torch.testing.assert_close(a.grad, expected)
    assert work.get_total_flops() == 2 * 2 * B * B * E


@pytest.mark.parametrize("row_chunk", [None, 5])
def test_the_backward_pass_can_be_run_again(row_chunk: int | None) -> None:
    x = inputs()
    loss = fast("clip", x, row_chunk=row_chunk).sum()
    first = torch.autograd.grad(loss, x[:3], retain_graph=True)
    for one, two in zip(first, torch.autograd.grad(loss, x[:3]), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=0)


def test_cosines_of_minus_one_under_the_largest_scale() -> None:
    """All captions at one point, some images there and some opposite: exp(-200) is no number of single precision."""
    axis = torch.eye(4)[:1]
    a, b = torch.cat([axis, -axis, axis, -axis]).requires_grad_(), axis.repeat(4, 1).requires_grad_()
    scale = torch.tensor(100.0)
    losses = matryoshka_clip_loss(a, b, scale, (4, 2))
    torch.testing.assert_close(losses, plain("clip", [a, b, scale], (4, 2)))
    for ours, theirs in zip(
        torch.autograd.grad(losses.sum(), (a, b)),
        torch.autograd.grad(plain("clip", [a, b, scale], (4, 2)).sum(), (a, b)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_prefixes_without_length_have_bounded_gradients() -> None:
    x = inputs()
    x[0].data[3, :7] = 0
    x[1].data[5, :3] = EPS / 100
    for kind in ("clip", "siglip"):
        assert_same(kind, fast(kind, x), plain(kind, x), x, 1e-9)


def test_it_is_single_precision_under_autocast_forward_and_backward() -> None:
    x = inputs(torch.float32)
    expected = gradients(fast("siglip", x), x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = gradients(fast("siglip", x), x)
    for ours, theirs in zip(cast, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_half_embeddings_are_computed_in_single_precision() -> None:
    x = [y.detach().bfloat16().requires_grad_() for y in inputs()]
    losses = fast("siglip", x)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, plain("siglip", [y.float() for y in x]), rtol=1e-5, atol=0)
    assert all(g.dtype == torch.bfloat16 for g in gradients(losses, x))


# The price


def test_all_prefixes_take_the_multiplications_of_the_widest(monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs(torch.float32)
    widest = 2 * B * B * E
    shorter_half, cheap = 2 * B * B * sorted(DIMS)[1], 2 * B * B * 3  # computed twice, and again
    for row_chunk, smallest_tile, expected in ((None, 256, 3 * widest), (5, 256, 4 * widest + shorter_half),
                                               (None, 4, 3 * widest + cheap)):  # fmt: skip
        monkeypatch.setattr(matryoshka, "SMALLEST_TILE", smallest_tile)
        with multiplications() as work:
            fast("clip", x, row_chunk=row_chunk).sum().backward()
        assert work.get_total_flops() == expected


class LargestTensor(TorchDispatchMode):
    """Remembers the most numbers that any operation returned in one tensor."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_with_row_chunk_no_tensor_grows_with_the_square_of_the_batch() -> None:
    x = inputs(torch.float32, batch=512, width=8)
    for row_chunk, largest in ((None, 3 * 512 * 512), (16, 512 * 8)):
        with LargestTensor() as seen:
            fast("clip", x, (8, 7, 2), row_chunk=row_chunk).sum().backward()
        assert seen.numel == largest  # what the forward pass works in, or nothing beyond the gradients


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_nor_does_one_with_equal_samples_and_hard_negatives(kind: str) -> None:
    x, wrong = inputs(torch.float32, batch=512, width=8), torch.randn(512, 8, requires_grad=True)
    numbers = torch.arange(512)
    # A quarter of the captions are equal, and a few negatives are that caption.
    labels, keys = torch.stack([numbers // 2, numbers * (numbers >= 128)], dim=1), numbers * (numbers >= 2) * 1000
    for grad in (True, False):
        with torch.set_grad_enabled(grad), LargestTensor() as seen:
            losses = fast(kind, x, (8, 7, 2), row_chunk=16, labels=labels, negatives=Negatives(wrong, keys))
            if grad:
                losses.sum().backward()
        assert seen.numel == 1024 * 8  # captions and negatives


def test_nothing_is_kept_without_gradients() -> None:
    x = inputs()
    with torch.no_grad():
        losses = fast("clip", x)
    assert losses.grad_fn is None
    torch.testing.assert_close(losses, fast("clip", x).detach(), rtol=0, atol=0)


# Refusals


@pytest.mark.parametrize("dims", [(), (0, 4), (4, 4), (E + 1,)])
def test_dims_that_are_no_prefixes_are_refused(dims: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be different lengths from 1 to 24"):
        fast("clip", inputs(), dims)


def test_embeddings_of_different_shapes_are_refused() -> None:
    a, b, scale, _ = inputs()
    with pytest.raises(ValueError, match=r"a, b: \(22, 24\) and \(21, 24\)"):
        matryoshka_clip_loss(a, b[1:], scale, DIMS)


def test_a_chunk_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="row_chunk: 0"):
        fast("clip", inputs(), row_chunk=0)
