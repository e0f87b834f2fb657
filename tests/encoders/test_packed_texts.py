"""Texts laid end to end: the embeddings and gradients of padded texts, and no padding in any linear layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from impresa.config.encoder import EncoderConfig
from impresa.encoders.text import TextEncoder
from packed_texts import LENGTHS, assert_close_in_norm, counting, encoded

T, D, V, END, PAD = 9, 16, 30, 29, 0
TOWERS: dict[str, dict[str, Any]] = {
    "end token": {},
    "mlp": {"projection": "mlp"},
    "mean": {"pooling": "mean", "projection": "mlp"},
    "attention pooling": {"use_attention_pooling": True, "projection": "linear"},
    "Perceiver": {"use_perceiver": True, "perceiver_num_latents": 3, "perceiver_num_heads": 2},
    "one block": {"depth": 1},
    "recomputed": {"activation_checkpointing": True},
    "recomputed, mean": {"activation_checkpointing": True, "pooling": "mean"},
    "bag": {"backbone": "bag", "projection": "mlp"},
    "bag, mean of its tokens": {"backbone": "bag", "pooling": "mean"},
}


def tower(**changes: Any) -> TextEncoder:
    settings = {"backbone": "transformer", "projection": "none", "depth": 3, "num_heads": 4, "max_len": 20}
    torch.manual_seed(0)
    return TextEncoder(EncoderConfig(**{**settings, "dim": D, "embed_dim": 8, **changes}), V, END)


def texts(lengths: tuple[int, ...], fill: int = PAD) -> tuple[Tensor, Tensor]:
    """Ids and mask of texts that end with their end token; an empty one has none."""
    ids = torch.randint(1, END, (len(lengths), T), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(T) < torch.tensor(lengths)[:, None]
    for row, length in enumerate(lengths):
        ids[row, max(length - 1, 0)] = END
    return ids.masked_fill(~mask, fill), mask


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("changes", TOWERS.values(), ids=TOWERS)
def test_outputs_and_gradients_are_those_of_padded_texts(changes: dict[str, Any], lengths: tuple[int, ...]) -> None:
    ids, mask = texts(lengths)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        model = tower(**changes).to(dtype)
        padded, expected = encoded(model, ids, mask)
        model.pack(True)
        packed, found = encoded(model, ids, mask)
        torch.testing.assert_close(packed.pooled, padded.pooled, rtol=tolerance, atol=tolerance)
        assert_close_in_norm(found, expected, 3 * tolerance)


@pytest.mark.parametrize("changes", [{}, {"pooling": "mean"}, {"backbone": "bag"}])
def test_what_stands_behind_a_text_changes_nothing(changes: dict[str, Any]) -> None:
    model, lengths = tower(**changes), (3, 9, 1)
    model.pack(True)
    first, second = (encoded(model, *texts(lengths, fill)) for fill in (PAD, 7))
    assert torch.equal(first[0].pooled, second[0].pooled)
    assert not second[1]["backbone.token_embedding.weight"][PAD].any()


@pytest.mark.parametrize("changes", [{}, {"pooling": "mean"}, {"backbone": "bag"}])
def test_without_a_mask_a_text_is_read_as_before(changes: dict[str, Any]) -> None:
    model, (ids, _) = tower(**changes), texts((3, 9, 1))
    padded, _ = encoded(model, ids, None)
    model.pack(True)
    torch.testing.assert_close(encoded(model, ids, None)[0].pooled, padded.pooled, rtol=1e-6, atol=1e-6)


def test_tokens_are_those_of_padded_texts_where_there_are_any() -> None:
    model, (ids, mask) = tower(projection="mlp"), texts((3, 9, 1))
    padded, _ = encoded(model, ids, mask, return_tokens=True)
    model.pack(True)
    packed, _ = encoded(model, ids, mask, return_tokens=True)
    assert torch.equal(packed.mask, mask)
    torch.testing.assert_close(packed.tokens[mask], padded.tokens[mask], rtol=1e-6, atol=1e-6)


def test_no_linear_layer_computes_padding() -> None:
    lengths = (3, 9, 5, 1, 5)
    ids, mask = texts(lengths)
    for changes in ({}, {"pooling": "mean", "projection": "mlp"}):
        model = tower(**changes)
        with counting(model) as padded:
            encoded(model, ids, mask)
        model.pack(True)
        with counting(model) as packed:
            encoded(model, ids, mask)
        assert packed.keys() == padded.keys()
        assert {tokens for tokens in padded.values() if tokens > len(lengths)} == {len(lengths) * T}
        assert {tokens for tokens in packed.values() if tokens > len(lengths)} == {sum(lengths)}


def test_texts_are_packed_in_training_only() -> None:
    model, (ids, mask) = tower().eval(), texts((3, 9))
    model.pack(True)
    with torch.no_grad(), counting(model) as tokens:
        model(ids, mask)
    assert max(tokens.values()) == 2 * T


def test_dropout_acts_on_packed_texts() -> None:
    model, (ids, mask) = tower(drop_rate=0.5, attn_drop_rate=0.5), texts((3, 9))
    model.pack(True)
    first, second = (model(ids, mask).pooled for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    plain = model(ids, mask).pooled
    model.pack(False)
    torch.testing.assert_close(model(ids, mask).pooled, plain, rtol=1e-6, atol=1e-6)
