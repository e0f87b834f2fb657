"""Dividing data into parts, so that a group of rows is in one part, by content and seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from impresa.errors import DataError


def divide(
    groups: NDArray[np.int64], names: Sequence[bytes], fractions: Sequence[float], seed: int
) -> NDArray[np.int64]:
    """(N,) the part of each of N rows.

    Groups are taken in the order of a hash of the seed and their smallest name, and fill the later parts as far as they
    fit; the first part has the rest. So the parts are the same in whichever order the rows come.

    Args:
        groups: (N,) rows of equal numbers stay together.
        names: of each row's content.
        fractions: of the rows in each part; their sum is 1. A part of 0 gets none, every other at least one group.
        seed: another one divides otherwise.

    Raises:
        DataError: there are fewer groups than parts.
    """
    _, group_of_row, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    smallest: dict[int, bytes] = {}
    for group, name in zip(group_of_row.tolist(), names, strict=True):
        smallest[group] = min(name, smallest.get(group, name))
    order = sorted(smallest, key=lambda group: blake2b(smallest[group], key=b"%d" % seed, digest_size=16).digest())
    wanted = [part for part, fraction in enumerate(fractions) if fraction > 0]
    if len(order) < len(wanted):
        fault = f"{len(order)} groups of equal or near-equal images cannot be divided into {len(wanted)} parts"
        raise DataError(f"data: {fault}; ask for fewer with --split, or give more data")
    first, *later = wanted
    part_of_group = np.full(len(sizes), first)
    room = {part: round(fractions[part] * len(groups)) for part in later}
    for group in order:
        part = next((part for part in later if sizes[group] <= room[part]), None)
        if part is not None:
            part_of_group[group] = part
            room[part] -= int(sizes[group])
    for part in wanted:
        if not (part_of_group == part).any():
            spare = [group for group in order if (part_of_group == part_of_group[group]).sum() > 1]
            part_of_group[min(spare, key=lambda group: sizes[group])] = part
    return part_of_group[group_of_row]
