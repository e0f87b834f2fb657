"""Quantised embeddings are those of sentence-transformers, number by number."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from sentence_transformers.util import quantize_embeddings

from impresa.config.types import EmbeddingPrecision
from impresa.tasks.quantization import quantized, ranges_of


@pytest.mark.parametrize("precision", get_args(EmbeddingPrecision))
@pytest.mark.parametrize("width", [16, 21])
def test_every_precision_is_that_of_the_library(precision: EmbeddingPrecision, width: int) -> None:
    embeddings = torch.nn.functional.normalize(torch.randn(200, width), dim=1)
    embeddings[:, 3] = 0.25  # a dimension without a range
    embeddings[5, 4] = 0.0
    found = quantized(embeddings, precision)
    expected = torch.from_numpy(quantize_embeddings(embeddings, precision))
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_ranges_of_others_cut_off_what_lies_beyond(precision: EmbeddingPrecision) -> None:
    corpus, queries = torch.randn(200, 8), 3 * torch.randn(40, 8)
    ranges = ranges_of(corpus)
    expected = torch.from_numpy(quantize_embeddings(queries, precision, ranges=ranges.numpy()))
    assert torch.equal(quantized(queries, precision, ranges), expected)


@pytest.mark.parametrize("precision", get_args(EmbeddingPrecision))
def test_nothing_has_the_width_of_something(precision: EmbeddingPrecision) -> None:
    expected = torch.from_numpy(quantize_embeddings(torch.zeros(0, 21), precision))
    found = quantized(torch.zeros(0, 21), precision)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
