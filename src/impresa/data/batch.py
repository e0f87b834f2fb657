"""What flows through the data part: one `Sample` per item of a source, one `Batch` of tensors per step."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


@dataclass
class Sample:
    """One item as a source yields it, before transforms and tokenizer."""

    id: str
    """Stable name of the sample, unique in its split: a file name, or source and row."""
    image: Image | None = None
    """RGB image, upright."""
    captions: tuple[str, ...] = ()
    """All captions of the image; training draws one per epoch, evaluation uses all of them."""
    label: str | None = None
    """Class name, if the data has one."""


@dataclass
class Batch:
    """Tensors of B samples, ready for the model. A modality that the data lacks is None."""

    ids: list[str]
    """Names of the samples, length B."""
    image: torch.Tensor | None = None
    """(B, 3, S, S) float32, normalised."""
    input_ids: torch.Tensor | None = None
    """(B, T) int64; T is the longest caption of this batch."""
    attention_mask: torch.Tensor | None = None
    """(B, T) bool; true where there is a token."""
    captions: list[str] = field(default_factory=list)
    """The captions behind `input_ids`, length B."""
    labels: list[str | None] = field(default_factory=list)
    """Class names, length B."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Samples that should have been here and could not be used: name and reason. They do not count in B."""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on `device`."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; the DataLoader calls this."""
        return self._map_tensors(lambda tensor: tensor.pin_memory())

    def _map_tensors(self, change: Any) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: change(v) for k, v in values.items() if hasattr(v, "pin_memory")})
