"""The resampler: shapes, depth, masks, and a start from which it can learn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from impresa.errors import CheckpointError, ConfigError
from impresa.layers.perceiver import PerceiverResampler


def _resampler(**changes: int) -> PerceiverResampler:
    return PerceiverResampler(**{"dim": 32, "num_latents": 5, "num_layers": 2, "num_heads": 4, **changes})


def _tokens(batch: int = 3, num: int = 7) -> Tensor:
    return torch.randn(batch, num, 32)


def test_compresses_any_number_of_tokens_and_reaches_every_parameter() -> None:
    resampler = _resampler()
    assert resampler(_tokens(num=1)).shape == (3, 5, 32)
    out = resampler(_tokens(num=40))
    assert out.shape == (3, 5, 32)
    (out * torch.randn_like(out)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in resampler.parameters())


@pytest.mark.parametrize(("field", "value"), [("num_latents", 9), ("num_layers", 3), ("mlp_ratio", 2)])
def test_each_size_changes_the_module(field: str, value: int) -> None:
    def sizes(module: PerceiverResampler) -> list[tuple[int, ...]]:
        return [tuple(p.shape) for p in module.parameters()]

    assert sizes(_resampler()) != sizes(_resampler(**{field: value}))


def test_num_heads_changes_the_result_but_not_the_weights() -> None:
    four, two = _resampler(), _resampler(num_heads=2)
    two.load_state_dict(four.state_dict())
    tokens = _tokens()
    assert not torch.allclose(four(tokens), two(tokens), atol=1e-4)


def test_padding_never_changes_a_result() -> None:
    resampler = _resampler()
    short = _tokens(1, 4)
    padded = torch.cat((short, 1e3 * torch.randn(1, 6, 32)), dim=1)
    mask = torch.arange(10)[None] < 4
    torch.testing.assert_close(resampler(padded, mask), resampler(short), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(resampler(padded), resampler(short), atol=1e-2)


def test_a_sample_without_any_real_token_stays_finite() -> None:
    assert _resampler()(_tokens(), torch.zeros(3, 7, dtype=torch.bool)).isfinite().all()


def test_the_latents_read_each_other() -> None:
    """Keys are tokens and latents: with the tokens hidden, changing one latent changes the others' outputs."""
    resampler, hidden = _resampler(num_layers=1), torch.zeros(1, 7, dtype=torch.bool)
    before = resampler(_tokens(1), hidden)
    with torch.no_grad():
        resampler.latents[0] = torch.randn(32)
    assert not torch.allclose(before[:, 1:], resampler(_tokens(1), hidden)[:, 1:], atol=1e-3)


def test_latents_start_small_and_distinct() -> None:
    latents = _resampler(dim=32, num_latents=512).latents
    assert latents.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.unique(latents, dim=0).shape == latents.shape


def test_equal_latents_are_refused() -> None:
    resampler = _resampler()
    state = resampler.state_dict() | {"latents": torch.ones(5, 32)}
    with pytest.raises(CheckpointError, match="latents: all 5 latents are equal"):
        resampler.load_state_dict(state)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="perceiver_num_heads: 5 heads do not divide the width 32"):
        _resampler(num_heads=5)
