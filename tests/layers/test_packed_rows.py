"""Sequences packed into rows: each is there once and whole, and rows cost no more than the padded batch."""

from __future__ import annotations

import pytest
import torch

from impresa.layers.rows import Rows

LENGTHS = {
    "spread": [9, 1, 3, 9, 2, 2, 5, 4],
    "all full": [9, 9, 9],
    "one alone": [9],
    "single tokens": [1, 1, 1],
    "an empty one": [4, 0, 9],
    "none at all": [0, 0],
}


@pytest.mark.parametrize("most", [None, 9, 12])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_each_sequence_is_there_once_whole_and_numbered_from_zero(lengths: list[int], most: int | None) -> None:
    mask = torch.stack([torch.randperm(9) < n for n in lengths])  # gaps anywhere, as prefixes have them
    rows = Rows.of(mask, dim=64, most=most)
    x = torch.randn(len(lengths), 9, 2)
    assert rows.source.numel() <= mask.numel()
    assert most is None or rows.source.shape[1] <= most
    torch.testing.assert_close(rows.spread(rows.joined(x)), x * mask[..., None], rtol=0, atol=0)
    owners = torch.arange(len(lengths))[:, None].expand_as(mask)
    for own, real, numbers in zip(rows.joined(owners), rows.real, rows.position_ids, strict=True):
        assert torch.equal(real, torch.arange(len(real)) < real.sum())  # filled up at the end
        found = own[real]
        begins = torch.cat((torch.tensor([True]), found.diff() != 0))[: len(found)]
        assert torch.equal(numbers[real] == 0, begins)
        assert torch.equal((numbers[real].diff() == 1), ~begins[1:])
        assert not numbers[~real].any()


def test_rows_hold_several_short_sequences_and_no_more_than_pays() -> None:
    mask = torch.arange(100) < torch.tensor([100, 50, 50, 30, 70])[:, None]
    wide, narrow = (Rows.of(mask, dim=dim) for dim in (4096, 1))
    assert wide.source.numel() == 300
    assert narrow.source.shape == (3, 100)  # attention costs more than padding there
    assert Rows.of(mask, dim=4096, most=100).source.shape == (3, 100)
