"""Reading the samples of an evaluation, and what to say where none can be used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from impresa.data.sample import Sample
from impresa.data.sources import BadSample, Source
from impresa.errors import DataError
from impresa.evaluation.results import BadSampleNote


def read_samples(source: Source, positions: Iterable[int], bad: list[BadSampleNote]) -> Iterator[tuple[int, Sample]]:
    """The good samples and their positions. The others are noted in `bad`."""
    for position in positions:
        try:
            yield position, source[position]
        except BadSample as fault:
            bad.append(BadSampleNote(fault.id, fault.reason))


def nothing_usable(data: str, bad: Sequence[BadSampleNote], command: str) -> DataError:
    """The error that no sample can be used: up to three different reasons, each with the first sample that has it."""
    first_of = {note.reason: note.id for note in reversed(bad)}
    reasons = [f"{first_of[reason]}: {reason}" for reason in dict.fromkeys(note.reason for note in bad)]
    return DataError(f"{data}: no usable sample ({'; '.join(reasons[:3]) or 'it is empty'}); `{command}` lists them")
