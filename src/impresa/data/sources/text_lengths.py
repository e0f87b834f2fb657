"""How long the text of each sample is, without a tokenizer: batches of like lengths have less padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from impresa.data.dialogue import Dialogue
from impresa.data.sources.base import Source


def text_lengths(source: Source, num_asked: int) -> NDArray[np.float64]:
    """(N,) length of the longest of `num_asked` dialogues of each sample, in bytes; all its texts are read once.

    Which dialogues an epoch draws is not known here: it is the mean of those that may be the longest. A sample without
    any is taken for one of the middle, so that those that cannot be used do not make whole batches.
    """
    lengths = np.array([_length(dialogues, num_asked) for dialogues in source.dialogues_by_sample()], dtype=float)
    known = lengths > 0
    return np.where(known, lengths, np.median(lengths[known])) if known.any() else lengths


def _length(dialogues: Sequence[Dialogue], num_asked: int) -> float:
    if not dialogues:
        return 0.0
    lengths = sorted(
        sum(_num_bytes(turn.question) + _num_bytes(turn.answer) for turn in dialogue.turns) for dialogue in dialogues
    )
    return float(np.mean(lengths[min(num_asked, len(lengths)) - 1 :]))


def _num_bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))
