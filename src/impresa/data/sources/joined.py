"""Several sources as one, each sample's name with that of its source before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import accumulate, chain

from impresa.data.dialogue import Dialogue
from impresa.data.sample import Sample
from impresa.data.sources.base import BadSample, Source, locate


class Joined:
    """The samples of some sources, by name, one source after the other."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._names, self._sources = list(sources), list(sources.values())
        self._ends = list(accumulate(map(len, self._sources)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        part, place = locate(index, self._ends)
        try:
            sample = self._sources[part][place]
        except BadSample as fault:
            raise BadSample(f"{self._names[part]}/{fault.id}", fault.reason) from fault
        return replace(sample, id=f"{self._names[part]}/{sample.id}")

    def captions(self) -> Iterator[str]:
        return chain.from_iterable(source.captions() for source in self._sources)

    def dialogues(self) -> Iterator[Dialogue]:
        return chain.from_iterable(source.dialogues() for source in self._sources)

    def dialogues_by_sample(self) -> Iterator[tuple[Dialogue, ...]]:
        return chain.from_iterable(source.dialogues_by_sample() for source in self._sources)

    def blocks(self) -> None:
        return None
