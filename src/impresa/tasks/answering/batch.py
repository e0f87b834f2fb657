"""A batch of images (or sounds) and dialogues about them, and how samples become one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch import Tensor

from impresa.data.dialogue import Dialogue
from impresa.data.preprocessing import Preprocessing, mask_of, spread_rows, stack_kept, stack_sounds
from impresa.data.sample import Sample, TensorBatch
from impresa.data.tiles import tiles_of
from impresa.decoders.base import IGNORED
from impresa.errors import DataError
from impresa.tasks.answering.squares import Place

Row = tuple[list[int], list[bool]]
"""Token ids of a dialogue, and for each whether it is supervised."""


@dataclass
class DialogueBatch(TensorBatch):
    """Tensors of B samples and of R dialogues about them, in the samples' order; each image and sound is there once.

    Where a sample of the batch has several squares (images, or tiles of one), `image` is (I, 3, S, S), the I squares of
    all samples in order, and `places` says where each belongs.
    """

    places: list[Place] | None = None
    """None where each sample has one square at most; length I."""

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

    @property
    def num_tokens(self) -> int:
        return 0 if self.attention_mask is None or not self.ids else int(self.attention_mask.sum())

    @property
    def num_placed(self) -> int:
        """Samples that `places` are of, also in an emptied batch."""
        assert self.places is not None
        return self.places[-1].sample + 1 if self.image_present is None else len(self.image_present)

    def inputs_of(self, sample: int) -> list[Tensor]:
        """The squares of a sample, and the features of its sound."""
        rows = [sample] if self.places is None else [row for row, at in enumerate(self.places) if at.sample == sample]
        squares = [] if self.image is None else [self.image[row] for row in rows]
        return squares if self.audio is None else [*squares, self.audio[sample]]

    @property
    def num_images(self) -> int:
        """The images that are there."""
        if self.places is not None:
            return len({(place.sample, place.image) for place in self.places})
        return _num_there(self, self.features if self.image is None else self.image, self.image_present)

    @property
    def num_sounds(self) -> int:
        """The sounds that are there."""
        return _num_there(self, self.audio, self.audio_present)


class DialogueCollator:
    """One row for each dialogue of each sample, padded on the right, and each image and sound once.

    Args:
        preprocessing: its tokenizer is a chat format.
        max_len: longest row in tokens; questions are cut, answers never.
        max_images: images of a sample at most.
        tiles: of an image at most.
    """

    def __init__(self, preprocessing: Preprocessing, max_len: int, max_images: int = 1, tiles: int = 1) -> None:
        self._preprocessing = preprocessing
        self._chat = preprocessing.chat
        self._max_len, self._max_images, self._tiles = max_len, max_images, tiles

    def __call__(self, samples: Iterable[Sample]) -> DialogueBatch:
        """A batch in the samples' order; those that cannot be asked about are named in `bad`, and left out.

        Samples are taken one by one, and only the squares of their images are kept: a batch of photographs would not
        fit into memory.
        """
        image_transform = self._preprocessing.image
        good: list[Sample] = []
        pixels = [torch.zeros(0, image_transform.size, image_transform.size, 3, dtype=torch.uint8)]
        places: list[Place] = []
        rows: list[list[Row]] = []
        bad: list[tuple[str, str]] = []
        for sample in samples:
            try:
                rows.append(self._encode(sample))
            except DataError as fault:
                bad.append((sample.id, str(fault)))
            else:
                for number, image in enumerate(sample.images):
                    tiles = tiles_of(image_transform, image, self._tiles)
                    pixels.append(image_transform.pixels_of_squares([tile.square for tile in tiles]))
                    places += (Place(len(good), number, tile.row, tile.column) for tile in tiles)
                good.append(replace(sample, image=None, more_images=()))
        batch = DialogueBatch(ids=[sample.id for sample in good], bad=bad)
        if not good:
            return batch
        if any(sample.kept is not None for sample in good):
            batch.image_present = mask_of([sample.has_image for sample in good])
            batch.features = stack_kept(good, batch.image_present)
        else:
            place_squares(batch, image_transform.normalize(torch.cat(pixels)), places)
        if self._preprocessing.audio is not None:
            batch.audio_present = mask_of([sample.audio is not None for sample in good])
            batch.audio, batch.audio_mask = stack_sounds(self._preprocessing.audio, good)
        batch.dialogues = [dialogue for sample in good for dialogue in sample.dialogues]
        self._add_rows(batch, rows)
        return batch

    def _encode(self, sample: Sample) -> list[Row]:
        if not sample.dialogues:
            raise DataError("nothing is asked")
        if (number := len(sample.images)) > self._max_images:
            raise DataError(f"it has {number} images, and this model reads {self._max_images} (dataset.max_images)")
        rows = [self._chat.encode(dialogue, self._max_len) for dialogue in sample.dialogues]
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


def place_squares(batch: DialogueBatch, squares: Tensor, places: list[Place]) -> None:
    """Put squares (I, 3, S, S) into a batch, in the order of its samples; a sample without one has a row of zeros."""
    num_of = Counter(place.sample for place in places)
    batch.image_present = mask_of([sample in num_of for sample in range(len(batch))])
    if max(num_of.values(), default=0) > 1:
        batch.image, batch.places = squares, places
    else:
        batch.image = spread_rows(squares, batch.image_present)


def _num_there(batch: DialogueBatch, inputs: Tensor | None, present: Tensor | None) -> int:
    return 0 if inputs is None else len(batch) if present is None else int(present.sum())


def _padded(rows: Sequence[list[int] | list[bool]], fill: int | bool) -> Tensor:
    """(R, T): the rows, filled up on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
