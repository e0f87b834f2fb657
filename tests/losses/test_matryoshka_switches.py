"""The loss module under Matryoshka training: its weights, and the prefix that a step draws."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from impresa.config.losses import LossConfig
from impresa.losses.clip import clip_loss
from impresa.losses.contrastive import ContrastiveLoss
from impresa.losses.kinds import KINDS
from impresa.losses.siglip import siglip_loss

B, E = 8, 16
DIMS = (16, 8, 4, 2)


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    return {name: torch.randn(B, E) for name in ("image", "text")}


def single(kind: str, inputs: dict[str, Tensor], d: int, loss: ContrastiveLoss) -> Tensor:
    a, b = (x[:, :d] for x in inputs.values())
    scale = loss.logit_scale.exp()
    return clip_loss(a, b, scale) if kind == "clip" else siglip_loss(a, b, scale, loss.logit_bias.value)


@pytest.mark.parametrize("dims", [DIMS, DIMS[1:]])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_loss_is_the_full_width_and_the_mean_over_prefixes(kind: str, dims: tuple, inputs: dict) -> None:
    config = LossConfig(type=kind, contrastive_weight=0.7, mrl_weight=0.4)
    loss = ContrastiveLoss(config, mrl_dimensions=dims)
    output = loss(inputs)
    each = {d: single(kind, inputs, d, loss) for d in (E, *dims)}
    mean = torch.stack([each[d] for d in dims]).mean()
    torch.testing.assert_close(output.loss, 0.7 * each[E] + 0.4 * mean)
    torch.testing.assert_close(output.logs["contrastive"], each[E].detach())
    assert {name for name in output.logs if name.startswith("mrl_")} == {f"mrl_{d}" for d in dims}
    for d in dims:
        torch.testing.assert_close(output.logs[f"mrl_{d}"], each[d].detach())


def test_without_dimensions_nothing_is_added(inputs: dict) -> None:
    output = ContrastiveLoss(LossConfig(mrl_weight=5.0))(inputs)
    torch.testing.assert_close(output.loss, output.logs["contrastive"])


def drawn(loss: ContrastiveLoss, inputs: dict, step: int) -> tuple[int, Tensor]:
    loss.commit(step)
    output = loss(inputs)
    (name,) = (name for name in output.logs if name.startswith("mrl_"))
    return int(name.removeprefix("mrl_")), output.loss


def drawing(seed: int = 0) -> ContrastiveLoss:
    return ContrastiveLoss(LossConfig(sample_single_mrl_dim=True), mrl_dimensions=DIMS, seed=seed)


def test_a_step_draws_one_prefix_and_logs_it_under_its_name(inputs: dict) -> None:
    loss = drawing()
    for step in range(1, 6):
        d, value = drawn(loss, inputs, step)
        expected = single("clip", inputs, E, loss) + single("clip", inputs, d, loss)
        torch.testing.assert_close(value, expected)


def test_all_prefixes_are_drawn_equally_often(inputs: dict) -> None:
    loss = drawing()
    counts = Counter(drawn(loss, inputs, step)[0] for step in range(600))
    assert counts.keys() == set(DIMS)
    assert all(abs(count - 150) < 45 for count in counts.values())  # four standard deviations


def test_the_draw_depends_on_seed_and_step_only(inputs: dict) -> None:
    steps = range(1, 30)
    one, other = ([drawn(drawing(seed), inputs, step)[0] for step in steps] for seed in (0, 1))
    assert one != other
    torch.manual_seed(99)
    loss = drawing()
    assert [drawn(loss, inputs, step)[0] for step in steps] == one
    resumed = drawing()
    loss.commit(11)
    resumed.load_state_dict(loss.state_dict())
    torch.testing.assert_close(resumed(inputs).loss, loss(inputs).loss, rtol=0, atol=0)
    torch.testing.assert_close(resumed(inputs).loss, resumed(inputs).loss, rtol=0, atol=0)  # micro-batches of a step


def test_validation_looks_at_all_prefixes(inputs: dict) -> None:
    every = ContrastiveLoss(LossConfig(), mrl_dimensions=DIMS)
    torch.testing.assert_close(drawing().eval()(inputs).loss, every(inputs).loss)


def test_row_chunk_changes_no_number_and_bounds_the_tiles(inputs: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ContrastiveLoss(LossConfig(), mrl_dimensions=DIMS)(inputs).loss
    seen = []

    def spy(*args: object, row_chunk: int | None, **options: object) -> Tensor:
        seen.append(row_chunk)
        return original(*args, row_chunk=row_chunk, **options)

    original = KINDS["clip"].objective
    monkeypatch.setitem(KINDS, "clip", replace(KINDS["clip"], objective=spy))
    torch.testing.assert_close(ContrastiveLoss(LossConfig(row_chunk=3), mrl_dimensions=DIMS)(inputs).loss, expected)
    assert seen == [3]
