"""The samples of each batch: a function of seed and epoch, divided among the ranks, with a state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from impresa.data.sources.base import Blocks
from impresa.errors import DataError

WINDOW, LEAST_WINDOWS = 50, 4
"""Batches whose samples are sorted by length together at most, and how many such windows an epoch has at least: the
samples of a batch would else be the same in each epoch."""
Item = tuple[int, int]
"""(epoch, index): all that the draws of a sample's caption and augmentation depend on, beside the seed."""


@dataclass(kw_only=True, eq=False)
class BlockSampler(Sampler[list[Item]]):
    """This rank's part of a validation: consecutive samples in batches that are the same on any number of ranks.

    Each batch is whole on one rank, and the ranks' batches one after the other are in the order of the data. A last
    batch of a single sample, which has no negatives, joins the one before it.
    """

    num_samples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        full, rest = divmod(self.num_samples, self.batch_size)
        self._num_batches = max(full + (rest > 1), 1)
        first, end = (self._num_batches * rank // self.world_size for rank in (self.rank, self.rank + 1))
        self._own = range(first, end)

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._own)

    def __iter__(self) -> Iterator[list[Item]]:
        for number in self._own:
            start = number * self.batch_size
            end = self.num_samples if number == self._num_batches - 1 else start + self.batch_size
            yield [(0, index) for index in range(start, end)]

    def begin_epoch(self) -> None:
        """Every validation starts anew."""

    def advance(self) -> None:
        """It has no state."""


@dataclass(kw_only=True, eq=False)
class BatchSampler(Sampler[list[Item]]):
    """This rank's shuffled batches of one epoch after the other.

    In each epoch every sample, or one of each group, comes exactly once on exactly one rank: no sample is repeated to
    fill a batch, since it would be a false negative of a contrastive loss. All ranks have the same number of batches.

    The shuffled epoch is cut into units, whose samples meet in the loss: `batch_size` samples where each rank contrasts
    its own, and as many for each rank where `least` is 0. A last unit of a single sample, which has no negatives, joins
    the one before it. Each rank takes a whole unit, or its consecutive part of the unit that all share. So the samples
    that meet, and those of a step, are the same on any number of ranks; at the end of an epoch a rank may have none,
    and an empty batch.

    Raises:
        DataError: the data have too few samples for the processes.
    """

    num_samples: int
    batch_size: int
    """Samples of a batch on one rank."""
    seed: int
    rank: int = 0
    world_size: int = 1
    least: int = 1
    """Samples that a batch needs on one rank; 0 where the batches of all ranks are one, and a part may be empty."""
    blocks: Blocks | None = None
    """Storage of the data; shuffling keeps to a few blocks at a time."""
    groups: NDArray[np.int64] | None = None
    """(N,) number of each sample's group, of which an epoch draws one sample; None draws all samples."""
    lengths: NDArray[np.float64] | None = None
    """(N,) length of each sample's text; None: batches know no lengths, else samples of like length come together."""

    def __post_init__(self) -> None:
        self._num_drawn = self.num_samples if self.groups is None else len(np.unique(self.groups))
        if self._num_drawn < self.world_size * max(self.least, 1):
            each = f", of which each needs {self.least} in a batch" if self.least > 1 else ""
            counts = f"{self._num_drawn} samples for {self.world_size} processes{each}"
            raise DataError(f"data: {counts}; use fewer devices or more data")
        self._global_size = self.batch_size * self.world_size
        self._unit_size = self.batch_size if self.least else self._global_size
        full, rest = divmod(self._num_drawn, self._unit_size)
        self._num_units = max(full + (rest > 1), 1)
        self._num_batches = -(-self._num_units // self.world_size) if self.least else self._num_units
        self._epoch = 0
        self._next_batch = 0
        self._resumed = False

    def __len__(self) -> int:
        """Batches of a whole epoch, also if the current epoch was resumed in its middle."""
        return self._num_batches

    def __iter__(self) -> Iterator[list[Item]]:
        """The rest of the current epoch."""
        epoch = self._epoch
        generator = np.random.default_rng((self.seed, epoch))
        parts = shuffled_parts(self.num_samples, self.blocks, generator)
        if self.groups is not None:
            drawn = one_of_each(self.groups, generator)
            parts = [part[drawn[part]] for part in parts]
        order = np.concatenate(parts)
        if self.lengths is not None:
            _sort_batches(order, np.cumsum([len(part) for part in parts]), self.lengths, self._global_size, generator)
        for number in range(self._next_batch, self._num_batches):
            first, end = self._own_part(number)
            yield [(epoch, int(index)) for index in order[first:end]]

    def _own_part(self, number: int) -> tuple[int, int]:
        """Position in the epoch of this rank's first sample of a batch, and of the one after its last."""
        if self.least:
            return self._unit(number * self.world_size + self.rank)
        start, end = self._unit(number)
        size = end - start
        # Rounded up, so that the first ranks have samples where others have none.
        first, after = (start - -size * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return first, after

    def _unit(self, number: int) -> tuple[int, int]:
        ends = number * self._unit_size, (number + 1) * self._unit_size
        if number < self._num_units - 1:
            return ends
        return (ends[0] if number < self._num_units else self._num_drawn), self._num_drawn

    def begin_epoch(self) -> None:
        """Note the start of an iteration: the epoch of an unfinished one is over, unless it was resumed."""
        if self._next_batch and not self._resumed:
            self._epoch, self._next_batch = self._epoch + 1, 0
        self._resumed = False

    def advance(self) -> None:
        """Note that a batch was used. A state counts these batches, and not those that workers fetch in advance."""
        self._next_batch += 1
        if self._next_batch == self._num_batches:
            self._epoch, self._next_batch = self._epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """The position of the next batch, and all that it depends on."""
        return {"epoch": self._epoch, "next_batch": self._next_batch, "world_size": self.world_size, **self._layout()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at the position of `state`, which another number of processes may have reached.

        Raises:
            DataError: the state is from the middle of an epoch over other data, or with another seed or batch size, so
                that its position has no meaning here.
        """
        own = self._layout()
        next_batch, inside = divmod(state["next_batch"] * state["global_batch_size"], self._global_size)
        # Any number of processes may stand where a batch of theirs begins.
        moved = {"global_batch_size"} if not inside else set()
        changed = [key for key, value in own.items() if state[key] != value and key not in moved]
        if state["next_batch"] and changed:
            details = ", ".join(f"{key} was {state[key]} and is {own[key]}" for key in changed)
            raise DataError(f"resume: the middle of an epoch cannot be continued, {details}; restore it or start anew")
        self._epoch, self._next_batch = state["epoch"], next_batch
        self._resumed = True

    def _layout(self) -> dict[str, int]:
        return {"num_samples": self._num_drawn, "global_batch_size": self._global_size, "seed": self.seed}


def shuffled_order(num_samples: int, blocks: Blocks | None, generator: np.random.Generator) -> NDArray[np.int64]:
    """(N,) indices of all samples in a random order that reads each block only once."""
    return np.concatenate(shuffled_parts(num_samples, blocks, generator))


def shuffled_parts(num_samples: int, blocks: Blocks | None, generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """`shuffled_order`, cut where other blocks are read.

    With blocks: shuffle the blocks, take as many as can be held at once, shuffle their samples together, and repeat.
    Where blocks lie in files of which not all can be held, the same with the files and their blocks comes before.
    """
    if blocks is None:
        return [generator.permutation(num_samples)]
    ends = np.cumsum(blocks.lengths)
    parts = []
    for shuffled in _shuffled_blocks(blocks, generator):
        for first in range(0, len(shuffled), blocks.num_held):
            held = shuffled[first : first + blocks.num_held]
            samples = np.concatenate([np.arange(ends[block] - blocks.lengths[block], ends[block]) for block in held])
            parts.append(generator.permutation(samples))
    return parts


def _shuffled_blocks(blocks: Blocks, generator: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """The numbers of all blocks in a random order; those in as many files as can be held come together."""
    if not blocks.files:
        yield generator.permutation(len(blocks.lengths))
        return
    file_of_block = np.array(blocks.files)
    files = generator.permutation(np.unique(file_of_block))
    for first in range(0, len(files), blocks.files_held):
        held = np.isin(file_of_block, files[first : first + blocks.files_held])
        yield generator.permutation(np.flatnonzero(held))


def _sort_batches(
    order: NDArray[np.int64],
    ends: NDArray[np.int64],
    lengths: NDArray[np.float64],
    size: int,
    generator: np.random.Generator,
) -> None:
    """Exchange samples, in place: those in a batch of `size` have like lengths then, and batches come in random order.

    They move within windows, none of which reaches over one of the `ends` of the order's parts: blocks are still read
    once. The batches that do reach over, and what is left behind the last whole batch, stay as they were drawn.
    """
    num = max(min(WINDOW, len(order) // size // LEAST_WINDOWS), 1)
    start = 0
    for end in ends:
        last = end // size
        for first in range(-(-start // size), last, num):
            window = order[first * size : min(first + num, last) * size]
            by_length = window[np.argsort(lengths[window], kind="stable")]
            window[:] = generator.permutation(by_length.reshape(-1, size)).ravel()
        start = end


def one_of_each(groups: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.bool_]:
    """(N,) true for one sample of each group, each with the same chance."""
    shuffled = generator.permutation(len(groups))
    _, first = np.unique(groups[shuffled], return_index=True)
    drawn = np.zeros(len(groups), dtype=bool)
    drawn[shuffled[first]] = True
    return drawn
