"""Input of a model: a `Sample` as a source yields it, and the common part of all batches of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha1
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image

    from impresa.config.encoder import Modality
    from impresa.data.audio import Clip
    from impresa.data.dialogue import Dialogue


@dataclass(frozen=True)
class KeptImage:
    """What a frozen tower has made of an image, which therefore need not be decoded."""

    features: NDArray[np.float16]
    """(F,), see `impresa.encoders.frozen`."""
    key: int
    """`Sample.image_key` of the image."""


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
    """Sound in one channel; None also if sound is not read."""
    dialogues: tuple[Dialogue, ...] = ()
    """Questions about the image, with answers; empty also if they are not read."""
    negatives: tuple[str, ...] = ()
    """Captions that are wrong for the image, none of them one of `captions`; training draws one per epoch. Empty also
    if they are not read."""
    keys: Mapping[Modality, int] = field(default_factory=dict)
    """`keys_with` the chosen caption, from before image and caption were changed; empty if nobody needs them."""

    negative_key: int | None = None
    """The same for the one negative that was drawn."""
    more_images: tuple[Image, ...] = ()
    """Further images that the questions are about, behind `image`."""
    kept: KeptImage | None = None
    """In place of the image."""

    @property
    def images(self) -> tuple[Image, ...]:
        """All images, in order."""
        return () if self.image is None else (self.image, *self.more_images)

    @property
    def has_image(self) -> bool:
        """True for one with an image, or what is kept of it."""
        return self.image is not None or self.kept is not None

    @cached_property
    def image_key(self) -> int | None:
        """A number that equal images share, pixel by pixel, whatever file they come from; None without an image."""
        if self.kept is not None:
            return self.kept.key
        keys = [_digest(f"{image.size}", image.tobytes()) for image in self.images]
        return _digest(f"{keys}") if len(keys) > 1 else next(iter(keys), None)

    @cached_property
    def audio_key(self) -> int | None:
        """The same for sounds of one rate, sample by sample."""
        return None if self.audio is None else _digest(f"{self.audio.rate_hz}", self.audio.samples.numpy())

    def keys_with(self, captions: Sequence[str]) -> dict[Modality, int]:
        """The identity of each part that the sample has, the first of these captions being its text."""
        text = text_key(captions[0]) if captions else None
        keys: dict[Modality, int | None] = {"image": self.image_key, "text": text, "audio": self.audio_key}
        return {modality: key for modality, key in keys.items() if key is not None}


@dataclass
class TensorBatch:
    """Images and sounds of B samples as tensors; each kind of model adds its texts.

    A modality that the data lacks is None. A sample that lacks a modality still has a row of it, with arbitrary
    content and false in the mask of this modality.
    """

    ids: list[str]
    """Names of the samples, length B."""
    image: torch.Tensor | None = None
    """(B, 3, S, S) float32, normalised."""
    features: torch.Tensor | None = None
    """(B, F) float16 in place of the images: what the frozen part of their tower has made of them."""
    audio: torch.Tensor | None = None
    """(B, F, M) float32 features of sounds; F is the longest of this batch, or a pretrained tower's fixed length."""
    audio_mask: torch.Tensor | None = None
    """(B, F) bool; true on frames that are not padding."""
    image_present: torch.Tensor | None = None
    """(B,) bool; true where the sample has an image, None if all have one."""
    audio_present: torch.Tensor | None = None
    """The same for sounds."""
    keys: dict[Modality, torch.Tensor] = field(default_factory=dict)
    """(B,) int64 on the CPU for each modality: equal numbers for equal images, captions or sounds, any number where a
    sample has none; empty if nobody needs them."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of samples that belong to this batch and could not be used; they do not count in B."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def weight(self) -> int:
        """The batch's weight in a mean over batches: the number of its samples."""
        return len(self)

    @property
    def num_tokens(self) -> int:
        """Tokens of its texts, without padding."""
        return 0

    @property
    def present(self) -> dict[Modality, torch.Tensor]:
        """(B,) bool for each modality that some samples lack, true where the sample has it."""
        masks: dict[Modality, torch.Tensor | None] = {"image": self.image_present, "audio": self.audio_present}
        return {modality: mask for modality, mask in masks.items() if mask is not None}

    def emptied(self) -> Self:
        """A batch of no samples, which a process computes beside others that have some: its rows count nowhere."""
        return replace(self, ids=[])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch with its tensors on `device`."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory; the DataLoader calls this."""
        return self._map_tensors(lambda tensor: tensor.pin_memory())

    def _map_tensors(self, change: Any) -> Self:
        tensors = {name: value for name, value in vars(self).items() if hasattr(value, "pin_memory")}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})


def text_key(text: str) -> int:
    """A number that equal texts share."""
    return _digest(text)


def _digest(name: str, content: Any = b"") -> int:
    """64 bits, the same in every process and on every machine. SHA-1 is what processors compute fastest."""
    content_hash = sha1(name.encode(errors="surrogatepass"), usedforsecurity=False)
    content_hash.update(content)
    return int.from_bytes(content_hash.digest()[:8], "little", signed=True)
