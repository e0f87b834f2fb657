"""What flows through the data part: one `Sample` per item of a source, one batch of tensors per step.

A `Batch` is for alignment, a `DialogueBatch` for a model that answers questions.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from impresa.config.experiment import Modality
    from impresa.data.audio import Clip
    from impresa.data.dialogue import Dialogue


@dataclass
class Sample:
    """One item as a source yields it, before transforms and tokenizer."""

    id: str
    """Stable name of the sample, unique in its split: a file name, or source and row."""
    image: Image | None = None
    """RGB image, upright."""
    captions: tuple[str, ...] = ()
    """All captions; training draws one per epoch, evaluation uses all of them."""
    label: str | None = None
    """Class name, if the data has one."""
    audio: Clip | None = None
    """Sound in one channel; None also where sound is not read at all."""
    dialogues: tuple[Dialogue, ...] = ()
    """Questions about the image, with answers; empty where they are not asked for."""


class _OfTensors:
    """A dataclass some of whose fields are tensors."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch with its tensors on `device`."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory; the DataLoader calls this."""
        return self._map_tensors(lambda tensor: tensor.pin_memory())

    def _map_tensors(self, change: Any) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        changed = {name: change(value) for name, value in values.items() if hasattr(value, "pin_memory")}
        return replace(self, **changed)  # type: ignore[type-var]


@dataclass
class Batch(_OfTensors):
    """Tensors of B samples, ready for the model. A modality that the data lacks is None.

    A sample that lacks a modality has a row of it all the same, whose content means nothing; a mask tells these rows.
    """

    ids: list[str]
    """Names of the samples, length B."""
    image: torch.Tensor | None = None
    """(B, 3, S, S) float32, normalised."""
    input_ids: torch.Tensor | None = None
    """(B, T) int64; T is the longest caption of this batch."""
    attention_mask: torch.Tensor | None = None
    """(B, T) bool; true where there is a token."""
    audio: torch.Tensor | None = None
    """(B, F, M) float32 features of sounds; F is the longest of this batch, or what a pretrained tower wants."""
    audio_mask: torch.Tensor | None = None
    """(B, F) bool; true on frames that are not padding."""
    image_present: torch.Tensor | None = None
    """(B,) bool; true where the sample has an image, None where all have one."""
    text_present: torch.Tensor | None = None
    """The same for captions."""
    audio_present: torch.Tensor | None = None
    """The same for sounds."""
    captions: list[str] = field(default_factory=list)
    """The captions behind `input_ids`, length B; empty for a sample without one."""
    labels: list[str | None] = field(default_factory=list)
    """Class names, length B."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Samples that should have been here and could not be used: name and reason. They do not count in B."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def weight(self) -> int:
        """What the batch counts in a mean over batches: its samples."""
        return len(self)

    @property
    def present(self) -> dict[Modality, torch.Tensor]:
        """(B,) bool for each modality that some samples lack, true where the sample has it."""
        masks: dict[Modality, torch.Tensor | None] = {
            "image": self.image_present,
            "text": self.text_present,
            "audio": self.audio_present,
        }
        return {modality: mask for modality, mask in masks.items() if mask is not None}


@dataclass
class DialogueBatch(_OfTensors):
    """Tensors of B samples and of R dialogues about them; each image and sound is there once.

    The rows stand in the samples' order. A sample without an image (or sound) has a row of it all the same, whose
    content means nothing; a mask tells these rows.
    """

    ids: list[str]
    """Names of the samples, length B."""
    image: torch.Tensor | None = None
    """(B, 3, S, S) float32, normalised."""
    audio: torch.Tensor | None = None
    """(B, F, M) float32 features of sounds; None where sound is not read."""
    audio_mask: torch.Tensor | None = None
    """(B, F) bool; true on frames that are not padding."""
    image_present: torch.Tensor | None = None
    """(B,) bool; true where the sample has an image, None where all have one."""
    audio_present: torch.Tensor | None = None
    """The same for sounds."""
    input_ids: torch.Tensor | None = None
    """(R, T) int64, padded on the right; T is the longest dialogue of this batch. None only if B is zero."""
    attention_mask: torch.Tensor | None = None
    """(R, T) bool; true where there is a token."""
    labels: torch.Tensor | None = None
    """(R, T) int64: `input_ids` where a token is supervised, -100 elsewhere; not shifted."""
    image_of_row: torch.Tensor | None = None
    """(R,) int64 from 0 to B - 1: the sample that each row asks about."""
    dialogues: list[Dialogue] = field(default_factory=list)
    """What the rows say, length R."""
    num_supervised: int = 0
    """Tokens with a label."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Samples that should have been here and could not be used: name and reason. They do not count in B."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def weight(self) -> int:
        """What the batch counts in a mean over batches: its supervised tokens."""
        return self.num_supervised

    @property
    def questions(self) -> list[str]:
        """The last question of each row, length R."""
        return [dialogue.turns[-1].question for dialogue in self.dialogues]

    @property
    def answers(self) -> list[str]:
        """The answers to them, length R."""
        return [dialogue.turns[-1].answer for dialogue in self.dialogues]

    @property
    def kinds(self) -> list[str | None]:
        """Types of the questions, length R."""
        return [dialogue.kind for dialogue in self.dialogues]

    @property
    def present(self) -> dict[Modality, torch.Tensor]:
        """(B,) bool for each modality that some samples lack, true where the sample has it."""
        masks: dict[Modality, torch.Tensor | None] = {"image": self.image_present, "audio": self.audio_present}
        return {modality: mask for modality, mask in masks.items() if mask is not None}
