"""Encoders for either kind of model: building them, and running them where samples lack a modality."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.config.paths import expanded
from impresa.data.audio import NUM_MELS, LogMelTransform
from impresa.data.sample import TensorBatch
from impresa.encoders.audio import AudioEncoder
from impresa.encoders.memory import unread
from impresa.encoders.output import EncoderOutput
from impresa.encoders.text import TextEncoder
from impresa.encoders.tower import Tower
from impresa.encoders.vision import VisionEncoder
from impresa.run_dir.layout import BACKBONES
from impresa.run_dir.weights import load_part, with_stored_backbone

AnyTower = TypeVar("AnyTower", bound=Tower)


def build_vision(config: ExperimentConfig, load_weights: bool) -> VisionEncoder:
    """The image encoder; `load_weights` false leaves out weights of pretrained towers and of other runs."""
    build = partial(VisionEncoder, image_size=config.dataset.image_size)
    return _build_tower(build, config.vision_encoder, "vision_encoder", load_weights)


def build_text(config: ExperimentConfig, vocab_size: int, end_id: int, load_weights: bool) -> TextEncoder:
    """The text encoder for a tokenizer of `vocab_size` tokens, whose end token is `end_id`."""
    build = partial(TextEncoder, vocab_size=vocab_size, end_id=end_id)
    return _build_tower(build, config.text_encoder, "text_encoder", load_weights)


def build_audio(config: ExperimentConfig, load_weights: bool) -> AudioEncoder | None:
    """The audio encoder, if the experiment has one."""
    if config.audio_encoder is None:
        return None
    max_frames = LogMelTransform(config.audio_encoder.audio_max_seconds).max_frames
    build = partial(AudioEncoder, num_mels=NUM_MELS, max_frames=max_frames)
    return _build_tower(build, config.audio_encoder, "audio_encoder", load_weights)


def _build_tower(build: Callable[..., AnyTower], tower: EncoderConfig, part: str, load_weights: bool) -> AnyTower:
    """A tower with its own seed; one from another run has its weights of that run."""
    with own_seed():
        if tower.checkpoint is None or not load_weights:
            return build(tower, load_weights=load_weights)
        run_dir = expanded(tower.checkpoint)
        stored = with_stored_backbone(tower, run_dir / BACKBONES / part)
        return load_part(partial(build, stored, load_weights=False), run_dir, part)


@contextmanager
def own_seed() -> Iterator[None]:
    """A block that takes a single draw from the generator outside, however many are drawn inside: a switch in one part
    leaves the start of the others as it is."""
    seed = int(torch.randint(2**62, (), device="cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


Encode = Callable[..., EncoderOutput]


def encode_images(
    encode: Encode, finish: Encode | None, batch: TensorBatch, present: Tensor | None
) -> EncoderOutput | None:
    """The output of the image encoder for the images of a batch that are present, by `encode`, or for kept features by
    `finish`, the part of the encoder that follows them; None without images."""
    if batch.features is not None:
        assert finish is not None, "it belongs to what has made the features"
        return encode_rows(finish, present, batch.features)
    return None if batch.image is None else encode_rows(encode, present, batch.image)


def encode_rows(encode: Encode, present: Tensor | None, *inputs: Tensor | None) -> EncoderOutput:
    """The output of an encoder for the rows that are present, zero (false in the mask) elsewhere.

    The encoder is not given the absent rows, which would enter its memory or its batch norms, unless there are no
    others: every process must run every encoder. Then no memory remembers the row that stands for them.
    """
    if present is None:
        return encode(*inputs)
    rows = present.nonzero().squeeze(1)
    chosen = rows if len(rows) else rows.new_zeros(1)
    with nullcontext() if len(rows) else unread():
        found = encode(*(tensor if tensor is None else tensor[chosen] for tensor in inputs))

    def spread(part: Tensor) -> Tensor:
        return part.new_zeros(len(present), *part.shape[1:]).index_copy(0, rows, part[: len(rows)])

    tokens, mask = (part if part is None else spread(part) for part in (found.tokens, found.mask))
    return EncoderOutput(spread(found.pooled), tokens, mask)
