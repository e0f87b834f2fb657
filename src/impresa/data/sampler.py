"""The samples of each batch: a function of seed and epoch, shared out over ranks, with a state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from impresa.data.sources.base import Blocks
from impresa.errors import DataError

Item = tuple[int, int]
"""(epoch, index): all that a worker needs to know to draw a sample's caption and augmentation."""


class BatchSampler(Sampler[list[Item]]):
    """This rank's batches of one epoch after the other.

    In each epoch every sample comes exactly once on exactly one rank: there are no repeats to fill a batch up, since
    they would be false negatives of a contrastive loss. All ranks have the same number of batches. A global batch is
    cut into consecutive parts, so that the ranks' parts one after the other are the batch that one process would see.
    The last global batch is shared out evenly; if it is too small to give each rank a sample, or is a single sample
    (which has no negatives), it joins the batch before it.

    Args:
        num_samples: length of the data.
        batch_size: samples of a batch on one rank.
        seed: with the epoch it decides the order.
        shuffle: false reads in file order.
        rank: number of this process.
        world_size: number of processes.
        blocks: storage of the data; shuffling keeps to a few blocks at a time.

    Raises:
        DataError: there are fewer samples than processes.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        rank: int = 0,
        world_size: int = 1,
        blocks: Blocks | None = None,
    ) -> None:
        if num_samples < world_size:
            raise DataError(f"data: {num_samples} samples for {world_size} processes; use fewer devices or more data")
        self._num_samples = num_samples
        self._global_size = batch_size * world_size
        self._seed = seed
        self._shuffle = shuffle
        self._rank = rank
        self._world_size = world_size
        self._blocks = blocks
        full, rest = divmod(num_samples, self._global_size)
        self._num_batches = max(full + (rest >= max(world_size, 2)), 1)
        self._epoch = 0
        self._next_batch = 0
        self._resumed = False

    def __len__(self) -> int:
        """Batches of a whole epoch, also when the epoch at hand was resumed in its middle."""
        return self._num_batches

    def __iter__(self) -> Iterator[list[Item]]:
        """The rest of the current epoch."""
        epoch = self._epoch
        order = self._order(epoch)
        for number in range(self._next_batch, self._num_batches):
            yield [(epoch, int(index)) for index in order[self._part(number)]]

    def begin_epoch(self) -> None:
        """An iteration starts. If an earlier one was left unfinished, its epoch is over, unless it was resumed."""
        if self._next_batch and not self._resumed:
            self._epoch, self._next_batch = self._epoch + 1, 0
        self._resumed = False

    def advance(self) -> None:
        """A batch has been handed out. Workers fetch ahead of this; a state speaks of batches that were used."""
        self._next_batch += 1
        if self._next_batch == self._num_batches:
            self._epoch, self._next_batch = self._epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """The position of the next batch, and all that it depends on."""
        return {"epoch": self._epoch, "next_batch": self._next_batch, **self._layout()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            DataError: the state is from the middle of an epoch over other data, another batch size, seed or number of
                processes, where its position means nothing.
        """
        changed = [key for key, value in self._layout().items() if state[key] != value]
        if state["next_batch"] and changed:
            details = ", ".join(f"{key} was {state[key]} and is {self._layout()[key]}" for key in changed)
            raise DataError(f"resume: the middle of an epoch cannot be continued, {details}; restore it or start anew")
        self._epoch, self._next_batch = state["epoch"], state["next_batch"]
        self._resumed = True

    def _layout(self) -> dict[str, int]:
        return {
            "num_samples": self._num_samples,
            "global_batch_size": self._global_size,
            "world_size": self._world_size,
            "seed": self._seed,
        }

    def _part(self, number: int) -> slice:
        start = number * self._global_size
        last = number == self._num_batches - 1
        size = self._num_samples - start if last else self._global_size
        return slice(
            start + size * self._rank // self._world_size,
            start + size * (self._rank + 1) // self._world_size,
        )

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if not self._shuffle:
            return np.arange(self._num_samples)
        generator = np.random.default_rng((self._seed, epoch))
        return shuffled_order(self._num_samples, self._blocks, generator)


def shuffled_order(num_samples: int, blocks: Blocks | None, generator: np.random.Generator) -> NDArray[np.int64]:
    """(N,) the numbers of all samples in a random order that reads each block only once.

    With blocks: shuffle the blocks, take as many as can be held at once, shuffle their samples together, and go on.
    """
    if blocks is None:
        return generator.permutation(num_samples)
    ends = np.cumsum(blocks.lengths)
    shuffled = generator.permutation(len(blocks.lengths))
    parts = []
    for first in range(0, len(shuffled), blocks.num_held):
        held = shuffled[first : first + blocks.num_held]
        samples = np.concatenate([np.arange(ends[block] - blocks.lengths[block], ends[block]) for block in held])
        parts.append(generator.permutation(samples))
    return np.concatenate(parts)
