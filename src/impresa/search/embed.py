"""All of a source as vectors: one row for each image, each text and each sound, duplicates included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from impresa.config.encoder import Modality
from impresa.config.types import EmbeddingPrecision
from impresa.data.sample import Sample
from impresa.data.sources import Source
from impresa.errors import DataError
from impresa.evaluation.results import BadSampleNote
from impresa.tasks.arguments import Vectors
from impresa.tasks.quantization import checked_ranges, quantized, ranges_of
from impresa.tasks.samples import Embedder, nothing_usable, progress_bar, read_samples

if TYPE_CHECKING:
    from impresa.tasks.alignment.embedder import EmbeddingModel

_PLURALS: dict[Modality, str] = {"image": "images", "text": "texts", "audio": "sounds"}


@dataclass(frozen=True)
class Row:
    """The origin of a vector."""

    id: str
    """Name of the sample."""
    modality: Modality
    caption: str | None
    """Of a text itself; of an image or a sound all captions, a line each. None if there is none."""
    label: str | None
    """Class name, if the data has one."""


@dataclass(frozen=True)
class EmbeddedData:
    """N vectors, and what each of them is of."""

    rows: list[Row]
    vectors: Tensor
    """(N, W) in the precision that was asked for."""
    ranges: Tensor | None
    """(2, E) the smallest and the largest number of each dimension, which int8 and uint8 were made with."""
    bad: list[BadSampleNote]
    num_samples: int
    """Samples that were read, bad ones included."""

    def summary(self) -> str:
        """Their number and width, and how many are of each modality, in words."""
        counts = {_PLURALS[kind]: sum(row.modality == kind for row in self.rows) for kind in _PLURALS}
        kinds = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
        numbers = f"{self.vectors.shape[1]} {str(self.vectors.dtype).removeprefix('torch.')}"
        return f"{len(self.rows):,} vectors of {numbers} numbers: {kinds}"


def embed_source(
    model: EmbeddingModel,
    source: Source,
    modalities: Sequence[Modality],
    *,
    data: str,
    batch_size: int,
    dim: int | None = None,
    precision: EmbeddingPrecision = "float32",
    ranges: Vectors | None = None,
    prompt_name: str | None = None,
    show_progress: bool = False,
) -> EmbeddedData:
    """Embed some parts of all samples, scaled to length one; bad samples are skipped and listed.

    The rows are in the order of `modalities`, and of the samples; a text is a row for each sample that has it.

    Args:
        model: embeds them.
        source: opened with these modalities as the `parts` of its `Reading`.
        modalities: which parts.
        data: name of the data in an error.
        batch_size: inputs at a time.
        dim, precision, ranges: of the vectors, as in `EncodeOptions`; the ranges are those of all rows together.
        prompt_name: of `encode_text`, for texts.
        show_progress: a bar on standard error.

    Raises:
        DataError: no sample is usable, there is no audio encoder for sounds, or an option is none that is possible.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "dim": dim}
    limits = checked_ranges(ranges, len(model.encode_text("a", dim=dim)), precision)
    encoders: dict[Modality, Any] = {
        "image": model.encode_image,
        "text": partial(model.encode_text, prompt_name=prompt_name),
        "audio": model.encode_audio,
    }
    embedders = {kind: Embedder[Any](partial(encoders[kind], **options), batch_size) for kind in modalities}
    rows: dict[Modality, list[Row]] = {kind: [] for kind in modalities}
    bad: list[BadSampleNote] = []
    with progress_bar(show_progress) as bar:
        positions = bar.track(range(len(source)), description="embedding")
        for _, sample in read_samples(source, positions, bad):
            for kind, item, caption in _parts(sample):
                if kind in rows:  # images are prepared one by one: a batch of photographs might not fit into memory
                    embedders[kind].add(model.preprocessing.image(item) if kind == "image" else item)
                    rows[kind].append(Row(sample.id, kind, caption, sample.label))
    every = [row for kind in modalities for row in rows[kind]]
    if not every:
        raise nothing_usable(data, bad, "impresa data check PATH")
    vectors = torch.cat([found for kind in modalities if len(found := embedders[kind].embeddings())])
    if not vectors.isfinite().all():
        raise DataError(f"{data}: embeddings are NaN or infinite; the training diverged, train the run again")
    if limits is None and precision in ("int8", "uint8") and len(vectors) > 1:
        limits = ranges_of(vectors)
    return EmbeddedData(every, quantized(vectors, precision, limits), limits, bad, len(source))


def _parts(sample: Sample) -> Iterator[tuple[Modality, Any, str | None]]:
    """Each part of a sample that can be embedded, and the caption of its row."""
    captions = "\n".join(sample.captions) or None
    if sample.image is not None:
        yield "image", sample.image, captions
    if sample.audio is not None:
        yield "audio", sample.audio, captions
    yield from (("text", caption, caption) for caption in sample.captions)
