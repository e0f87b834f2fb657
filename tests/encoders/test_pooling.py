"""Poolings: what they compute, and that padding never changes a result."""

from __future__ import annotations

import pytest
import torch

from impresa.config.encoder import EncoderConfig
from impresa.encoders.output import Features
from impresa.encoders.pooling import (
    AttentionPooling,
    MeanPooling,
    Pooling,
    Summary,
    SummaryPooling,
    build_pooling,
    mean_pool,
)
from impresa.errors import ConfigError

B, N, D = 3, 6, 16


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(B, N, D)


def ragged() -> torch.Tensor:
    return torch.arange(N) < torch.tensor([[6], [1], [4]])


def pool(pooling: Pooling, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    return pooling(Features(tokens=tokens, mask=mask))


def test_mean_is_over_real_tokens(tokens: torch.Tensor) -> None:
    torch.testing.assert_close(mean_pool(tokens), tokens.mean(1))
    expected = torch.stack([tokens[0].mean(0), tokens[1, 0], tokens[2, :4].mean(0)])
    torch.testing.assert_close(mean_pool(tokens, ragged()), expected)
    torch.testing.assert_close(pool(MeanPooling(), tokens, ragged()), expected)


def test_mean_of_nothing_is_zero_and_not_a_nan(tokens: torch.Tensor) -> None:
    assert not mean_pool(tokens, torch.zeros(B, N, dtype=torch.bool)).any()


def test_attention_pooling_ignores_padding(tokens: torch.Tensor) -> None:
    pooling = AttentionPooling(D, 4)
    mask = ragged()
    noisy = torch.where(mask.unsqueeze(-1), tokens, 100.0)
    torch.testing.assert_close(pool(pooling, noisy, mask), pool(pooling, tokens, mask))
    torch.testing.assert_close(pool(pooling, tokens, mask)[2], pool(pooling, tokens[2:, :4])[0])
    torch.testing.assert_close(pool(pooling, tokens), pool(pooling, tokens, torch.ones(B, N, dtype=torch.bool)))


def test_attention_pooling_weighs_tokens_by_its_query(tokens: torch.Tensor) -> None:
    pooling = AttentionPooling(D, 4)
    permuted = tokens[:, torch.randperm(N)]
    torch.testing.assert_close(pool(pooling, permuted), pool(pooling, tokens))
    mean = pooling.attention.out(pooling.attention.key_value(tokens)[..., D:].mean(1))
    assert not torch.allclose(pool(pooling, tokens), mean, atol=1e-3)


def test_attention_pooling_takes_heads_that_fit() -> None:
    assert AttentionPooling(18, 4).attention.num_heads == 3


@pytest.mark.parametrize(
    ("changes", "summary", "expected"),
    [
        ({}, "cls", SummaryPooling),
        ({}, "eot", SummaryPooling),
        ({}, "own", SummaryPooling),
        ({}, None, MeanPooling),
        ({"pooling": "cls"}, "cls", SummaryPooling),
        ({"pooling": "eot"}, "eot", SummaryPooling),
        ({"pooling": "mean"}, "cls", MeanPooling),
        ({"pooling": "mean", "use_attention_pooling": True}, "cls", AttentionPooling),
        ({"pooling": "cls", "use_perceiver": True}, "cls", MeanPooling),
    ],
)
def test_which_pooling_a_tower_takes(
    changes: dict[str, object], summary: Summary | None, expected: type[Pooling]
) -> None:
    assert type(build_pooling(EncoderConfig(**changes), D, summary)) is expected


def test_a_summary_is_handed_on_as_it_is(tokens: torch.Tensor) -> None:
    assert torch.equal(SummaryPooling()(Features(summary=tokens[:, 0])), tokens[:, 0])


@pytest.mark.parametrize(
    ("pooling", "summary", "mend"), [("eot", "cls", "cls"), ("cls", "eot", "eot"), ("cls", None, "auto")]
)
def test_a_token_that_is_not_there_is_refused(pooling: str, summary: Summary | None, mend: str) -> None:
    with pytest.raises(ConfigError, match=f"pooling: {pooling} is no token of this tower; choose {mend} or mean"):
        build_pooling(EncoderConfig(pooling=pooling), D, summary)
