"""The batch sampler: every sample once per epoch over all ranks, orders from seed and epoch, and a state."""

from __future__ import annotations

import re
from itertools import chain, product

import numpy as np
import pytest

from impresa.data.sampler import BatchSampler, BlockSampler, Item
from impresa.data.sources.base import Blocks
from impresa.errors import DataError


def sampler(num_samples: int = 20, batch_size: int = 4, **changes: object) -> BatchSampler:
    return BatchSampler(**{"num_samples": num_samples, "batch_size": batch_size, "seed": 0, **changes})


def epochs(one: BatchSampler, count: int) -> list[list[list[Item]]]:
    """What a loader would see: the batches of `count` epochs."""
    seen = []
    for _ in range(count):
        one.begin_epoch()
        seen.append([])
        for batch in one:
            one.advance()
            seen[-1].append(batch)
    return seen


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "world_size"), product((7, 8, 9, 23, 64, 65), (1, 3, 8), (1, 2, 3, 7))
)
def test_each_sample_comes_once_on_one_rank(num_samples: int, batch_size: int, world_size: int) -> None:
    ranks = [sampler(num_samples, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [next(iter(epochs(one, 1))) for one in ranks]
    assert sorted(index for _, index in chain(*chain(*batches))) == list(range(num_samples))
    assert {len(one) for one in batches} == {len(one) for one in ranks} == {len(batches[0])}
    sizes = [[len(batch) for batch in one] for one in batches]
    assert min(sizes[0]) >= 1
    assert max(map(max, sizes)) <= batch_size + 1
    for parts in zip(*sizes, strict=True):
        assert sum(parts) > 1 or batch_size == 1


@pytest.mark.parametrize(("num_samples", "world_size"), product((24, 25, 26, 27, 31, 64), (2, 4, 8)))
def test_the_ranks_parts_are_what_one_process_sees(num_samples: int, world_size: int) -> None:
    """Batches that all share, and those of which each is whole on one rank."""
    shared, own = epochs(sampler(num_samples, 8), 2), epochs(sampler(num_samples, 2), 2)
    for least, size in ((0, 8 // world_size), (2, 2)):
        parts = [
            epochs(sampler(num_samples, size, rank=rank, world_size=world_size, least=least), 2)
            for rank in range(world_size)
        ]
        for epoch in range(2):
            together = list(zip(*(part[epoch] for part in parts), strict=True))
            if least:
                assert [batch for batches in together for batch in batches if batch] == own[epoch]
            else:
                assert [list(chain(*batches)) for batches in together] == shared[epoch]
                assert all(max(map(len, batches)) - min(map(len, batches)) <= 1 for batches in together)


def test_a_last_batch_without_negatives_joins_the_one_before() -> None:
    assert [len(batch) for batch in sampler(9, 4)] == [4, 5]
    assert [len(batch) for batch in sampler(10, 4)] == [4, 4, 2]
    assert [len(batch) for batch in sampler(10, 4, world_size=2, rank=0, least=0)] == [4, 1]
    assert [len(batch) for batch in sampler(9, 4, world_size=2, rank=0, least=0)] == [5]
    assert [len(batch) for batch in sampler(9, 4, world_size=2, rank=1)] == [5]
    assert [len(batch) for batch in sampler(3, 1)] == [1, 1, 1]


def test_less_data_than_a_batch_is_one_batch() -> None:
    assert [len(batch) for batch in sampler(3, 256)] == [3]
    assert [len(batch) for batch in sampler(1, 256)] == [1]


def test_fewer_samples_than_processes_are_refused() -> None:
    with pytest.raises(DataError, match="2 samples for 3 processes; use fewer"):
        sampler(2, 4, world_size=3)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    one, two, other = epochs(sampler(), 2), epochs(sampler(), 2), epochs(sampler(seed=1), 2)
    assert one == two
    indices = [[index for _, index in chain(*epoch)] for epoch in (*one, *other)]
    assert len({tuple(order) for order in indices}) == 4
    assert [{epoch for epoch, _ in chain(*batches)} for batches in one] == [{0}, {1}]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize(("num_samples", "sizes"), [(23, [4] * 5 + [3]), (21, [4] * 4 + [5]), (20, [4] * 5), (1, [1])])
def test_a_validation_has_the_same_batches_in_any_number_of_processes(
    num_samples: int, sizes: list[int], world_size: int
) -> None:
    ranks = [
        BlockSampler(num_samples=num_samples, batch_size=4, rank=r, world_size=world_size) for r in range(world_size)
    ]
    for _ in range(2):
        batches = [batch for one in ranks for batch in one]
        assert [index for _, index in chain(*batches)] == list(range(num_samples))
        assert [len(batch) for batch in batches] == sizes
    assert [len(one) for one in ranks] == [len(list(one)) for one in ranks]
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


def test_a_rank_that_contrasts_its_own_rows_has_two_in_each_batch() -> None:
    for num_samples in (8, 9, 10, 11, 12, 13, 17):
        ranks = [[len(batch) for batch in sampler(num_samples, 4, rank=r, world_size=2, least=2)] for r in range(2)]
        assert min(filter(None, chain(*ranks))) >= 2
        assert sum(chain(*ranks)) == num_samples
    with pytest.raises(DataError, match="3 samples for 2 processes, of which each needs 2 in a batch; use fewer"):
        sampler(3, 4, world_size=2, least=2)


@pytest.mark.parametrize("done", [0, 1, 3, 5, 7])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_resumed_sampler_goes_on_where_the_first_stopped(done: int, rank: int) -> None:
    straight = list(chain(*epochs(sampler(rank=rank, world_size=2), 3)))
    first = sampler(rank=rank, world_size=2)
    seen = []
    while len(seen) < done:
        first.begin_epoch()
        for batch in first:
            seen.append(batch)
            first.advance()
            if len(seen) == done:
                break
    second = sampler(rank=rank, world_size=2)
    second.load_state_dict(first.state_dict())
    assert len(second) == len(first)
    assert (seen + list(chain(*epochs(second, 4))))[: len(straight)] == straight


def test_an_abandoned_epoch_is_over() -> None:
    one = sampler()
    one.begin_epoch()
    next(iter(one))
    one.advance()
    assert epochs(one, 1)[0] == epochs(sampler(), 2)[1]


def test_looking_ahead_does_not_move_the_state() -> None:
    one = sampler()
    one.begin_epoch()
    ahead = iter(one)
    for _ in range(4):
        next(ahead)
    one.advance()
    assert (one.state_dict()["epoch"], one.state_dict()["next_batch"]) == (0, 1)


@pytest.mark.parametrize("least", [0, 2])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4), (4, 1)])
def test_another_number_of_ranks_goes_on_with_the_samples_that_are_left(before: int, after: int, least: int) -> None:
    def seen(ranks: list[BatchSampler]) -> list[Item]:
        batches = zip(*(epochs(one, 1)[0] for one in ranks), strict=True)
        return list(chain(*chain(*batches)))

    def ranks(number: int) -> list[BatchSampler]:
        size = 2 if least else 8 // number
        return [sampler(29, size, rank=r, world_size=number, least=least) for r in range(number)]

    first, second = ranks(before), ranks(after)
    straight = seen(ranks(before))
    for one in first:
        one.begin_epoch()
        for _ in range(2 * (4 // before) if least else 2):  # two steps of eight samples
            one.advance()
    for one in second:
        one.load_state_dict(first[0].state_dict())
    assert seen(second) == straight[16:]


@pytest.mark.parametrize("change", [{"num_samples": 21}, {"batch_size": 5}, {"seed": 2}, {"world_size": 3, "rank": 0}])
def test_the_middle_of_other_data_is_refused_but_not_the_start_of_an_epoch(change: dict[str, int]) -> None:
    one, changed = sampler(), sampler(**change)
    changed.load_state_dict({**one.state_dict(), "epoch": 3})
    assert changed.state_dict()["epoch"] == 3
    one.advance()
    with pytest.raises(
        DataError, match=rf"resume: .* {re.sub('batch_size|world_size', 'global_batch_size', next(iter(change)))} was"
    ):
        sampler(**change).load_state_dict(one.state_dict())


def test_shuffling_stays_within_the_blocks_that_are_held() -> None:
    blocks = Blocks(lengths=(5, 1, 4, 6, 4), num_held=2)
    block_of = [number for number, length in enumerate(blocks.lengths) for _ in range(length)]
    orders = [[index for _, index in chain(*epoch)] for epoch in epochs(sampler(20, 4, blocks=blocks), 20)]
    assert len({tuple(order) for order in orders}) == 20
    for order in orders:
        assert sorted(order) == list(range(20))
        turns = [set(), set(), set()]
        left = list(order)
        for turn in turns:
            turn.add(block_of[left[0]])
            while left and (block_of[left[0]] in turn or len(turn) < 2):
                turn.add(block_of[left.pop(0)])
        assert not left
        assert sorted(chain(*turns)) == list(range(5))
    assert len({tuple(sorted(block_of[i] for i in order[:5])) for order in orders}) > 3
    assert any(order[0] > order[1] for order in orders)


def padding(batches: list[list[Item]], lengths: np.ndarray) -> float:
    """The share of padding in batches that are as long as their longest sample."""
    sizes = [lengths[[index for _, index in batch]] for batch in batches]
    whole = sum(len(batch) * batch.max() for batch in sizes)
    return 1 - sum(batch.sum() for batch in sizes) / whole


LENGTHS = np.random.default_rng(0).lognormal(3, 0.8, 1003)
"""Of questions and answers: most are short."""


def test_batches_of_like_lengths_have_less_padding_and_each_sample_once() -> None:
    plain, sorted_ = (epochs(sampler(1003, 8, lengths=lengths), 3) for lengths in (None, LENGTHS))
    before, after = (np.mean([padding(epoch, LENGTHS) for epoch in some]) for some in (plain, sorted_))
    assert before > 0.5
    assert after < before / 4
    for epoch in sorted_:
        assert sorted(index for _, index in chain(*epoch)) == list(range(1003))
    assert [list(map(len, epoch)) for epoch in sorted_] == [list(map(len, epoch)) for epoch in plain]


def test_batches_of_like_lengths_come_in_random_order_and_are_others_in_each_epoch() -> None:
    first, second = epochs(sampler(1003, 8, lengths=LENGTHS), 2)
    means = [LENGTHS[[index for _, index in batch]].mean() for batch in first]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.2
    one, two = ({frozenset(index for _, index in batch) for batch in epoch} for epoch in (first, second))
    assert len(one & two) < len(one) / 10
    assert epochs(sampler(1003, 8, lengths=LENGTHS), 2) == [first, second]


def test_batches_of_like_lengths_are_the_same_in_any_number_of_processes_and_resume() -> None:
    whole = epochs(sampler(1003, 8, lengths=LENGTHS), 2)
    parts = [epochs(sampler(1003, 4, lengths=LENGTHS, rank=rank, world_size=2), 2) for rank in range(2)]
    for epoch, batches in enumerate(whole):
        assert batches == [one + two for one, two in zip(parts[0][epoch], parts[1][epoch], strict=True)]
    stopped, resumed = (sampler(1003, 8, lengths=LENGTHS) for _ in range(2))
    stopped.begin_epoch()
    for _ in range(57):
        stopped.advance()
    resumed.load_state_dict(stopped.state_dict())
    assert epochs(resumed, 2) == [whole[0][57:], whole[1]]


def test_sorting_by_length_stays_within_the_blocks_that_are_held() -> None:
    blocks = Blocks(lengths=(203, 100, 300, 250, 150), num_held=2)
    block_of = np.repeat(np.arange(5), blocks.lengths)
    plain, by_length = (
        np.array([index for _, index in chain(*epochs(sampler(1003, 8, blocks=blocks, lengths=lengths), 1)[0])])
        for lengths in (None, LENGTHS)
    )
    assert plain.tolist() != by_length.tolist()
    for block in range(5):  # each is read where it was, but for the rest of a batch
        first, last = (np.flatnonzero(block_of[order] == block)[[0, -1]] for order in (plain, by_length))
        assert abs(first - last).max() < 8 * 8


def test_of_like_lengths_one_of_each_group_is_drawn() -> None:
    groups = np.arange(1003) // 4
    (epoch,) = epochs(sampler(1003, 8, groups=groups, lengths=LENGTHS), 1)
    assert sorted(groups[[index for _, index in chain(*epoch)]]) == list(range(251))
    assert padding(epoch, LENGTHS) < 0.4
