"""A batch of images (or sounds) and dialogues about them, and how samples become one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch import Tensor

from impresa.data.dialogue import Dialogue
from impresa.data.preprocessing import Preprocessing, image_rows, mask_of, stack_sounds
from impresa.data.sample import Sample, TensorBatch
from impresa.decoders.base import IGNORED
from impresa.errors import DataError

Row = tuple[list[int], list[bool]]
"""Token ids of a dialogue, and for each whether it is supervised."""


@dataclass
class DialogueBatch(TensorBatch):
    """Tensors of B samples and of R dialogues about them, in the samples' order; each image and sound is there once."""

    input_ids: torch.Tensor | None = None
    """(R, T) int64, padded on the right; T is the longest dialogue of this batch. None only if B is zero."""
    attention_mask: torch.Tensor | None = None
    """(R, T) bool; true where there is a token."""
    labels: torch.Tensor | None = None
    """(R, T) int64: `input_ids` where a token is supervised, -100 elsewhere; not shifted."""
    image_of_row: torch.Tensor | None = None
    """(R,) int64 from 0 to B - 1: the sample that each row asks about."""
    dialogues: list[Dialogue] = field(default_factory=list)
    """The dialogues of the rows, length R."""
    num_supervised: int = 0
    """Tokens with a label."""

    def emptied(self) -> DialogueBatch:
        """No samples, and a weight of zero for the loss of the rows that are left."""
        return replace(super().emptied(), num_supervised=0)

    @property
    def weight(self) -> int:
        """The batch's weight in a mean over batches: the number of its supervised tokens."""
        return self.num_supervised


class DialogueCollator:
    """One row for each dialogue of each sample, padded on the right, and each image and sound once.

    Args:
        preprocessing: its tokenizer is a chat format.
        max_len: longest row in tokens; questions are cut, answers never.
    """

    def __init__(self, preprocessing: Preprocessing, max_len: int) -> None:
        self._preprocessing = preprocessing
        self._chat = preprocessing.chat
        self._max_len = max_len

    def __call__(self, samples: Iterable[Sample]) -> DialogueBatch:
        """A batch in the samples' order; those that cannot be asked about are named in `bad`, and left out.

        Samples are taken one by one, and only the squares of their images are kept: a batch of photographs would not
        fit into memory.
        """
        image_transform = self._preprocessing.image
        good: list[Sample] = []
        pixels: list[Tensor | None] = []
        rows: list[list[Row]] = []
        bad: list[tuple[str, str]] = []
        for sample in samples:
            try:
                rows.append(self._encode(sample.dialogues))
            except DataError as fault:
                bad.append((sample.id, str(fault)))
            else:
                pixels.append(None if sample.image is None else image_transform.pixels([sample.image])[0])
                good.append(replace(sample, image=None))
        batch = DialogueBatch(ids=[sample.id for sample in good], bad=bad)
        if not good:
            return batch
        squares = [square for square in pixels if square is not None]
        batch.image_present = mask_of([square is not None for square in pixels])
        batch.image = image_rows(image_transform, torch.stack(squares) if squares else None, batch.image_present)
        if self._preprocessing.audio is not None:
            batch.audio_present = mask_of([sample.audio is not None for sample in good])
            batch.audio, batch.audio_mask = stack_sounds(self._preprocessing.audio, good)
        batch.dialogues = [dialogue for sample in good for dialogue in sample.dialogues]
        self._add_rows(batch, rows)
        return batch

    def _encode(self, dialogues: Sequence[Dialogue]) -> list[Row]:
        if not dialogues:
            raise DataError("nothing is asked")
        rows = [self._chat.encode(dialogue, self._max_len) for dialogue in dialogues]
        if not all(any(supervised) for _, supervised in rows):
            raise DataError("no token of an answer is supervised")
        return rows

    def _add_rows(self, batch: DialogueBatch, rows_of_sample: list[list[Row]]) -> None:
        rows = list(chain(*rows_of_sample))
        supervised = _padded([flags for _, flags in rows], False)
        batch.input_ids = _padded([ids for ids, _ in rows], self._chat.pad_id)
        batch.attention_mask = _padded([[True] * len(ids) for ids, _ in rows], False)
        batch.labels = batch.input_ids.masked_fill(~supervised, IGNORED)
        batch.num_supervised = int(supervised.sum())
        lengths = torch.tensor([len(rows) for rows in rows_of_sample])
        batch.image_of_row = torch.arange(len(lengths)).repeat_interleave(lengths)


def _padded(rows: Sequence[list[int] | list[bool]], fill: int | bool) -> Tensor:
    """(R, T): the rows, filled up on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
