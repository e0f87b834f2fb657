"""The configuration that the engine reads: one frozen, fully typed tree, `ExperimentConfig`.

The other dialect, `MemoryVLMConfig`, is translated into this one. Reading or building a config imports neither torch
nor transformers. A tree from YAML is validated by `impresa.config.validate`, and so is one built in Python as soon as
it is trained or saved. Without a `decoder` an experiment is an alignment (contrastive training of the encoders); with
one it is a vision-language model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from impresa.config.dataset import DatasetConfig
from impresa.config.decoder import DecoderConfig
from impresa.config.encoder import OURS, EncoderConfig, Modality
from impresa.config.losses import LossConfig
from impresa.config.optimization import OptimizationConfig
from impresa.config.types import (
    Batch,
    CheckpointConfig,
    Count,
    CountOrZero,
    Depth,
    Flag,
    LoggingConfig,
    Minutes,
    Name,
    Processes,
    Rate,
    Section,
    Seed,
    Text,
    Width,
)

Compile = Literal["off", "blocks", "model"]
PAIR = ("vision_encoder", "text_encoder")
"""The towers that a pretrained pair has."""


@dataclass(frozen=True, kw_only=True)
class FusionConfig(Section):
    """How tokens of several modalities become one prefix, or one embedding."""

    strategy: Literal["concat", "cross_attention", "gated"] = "concat"
    """`concat` (project each, concatenate), `cross_attention` (learned queries), `gated` (sum with learned gates)."""
    projector: Literal["linear", "mlp"] = "linear"
    """Projection of each modality's tokens to the common width, before everything else: one linear layer, or two with
    GELU between them (`mlp`, as in LLaVA-1.5, Liu et al. 2023)."""
    layers: Depth = 2
    """cross_attention: depth."""
    num_queries: Width = 32
    """cross_attention, gated: number of learned queries."""
    num_heads: Width = 8
    """cross_attention, gated: attention heads."""
    dropout: Rate = 0.0
    """Dropout on the fused tokens."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Section):
    """Length of the training run, hardware, logging and checkpoints."""

    epochs: Count = 100
    """Passes over the training data."""
    max_steps: Count | None = None
    """Stop after this many optimizer steps, if that comes before the last epoch."""
    early_stopping_patience: Count | None = None
    """Stop after this many validations in a row without a new best of `checkpoint.monitor`. null: never."""
    accumulate_grad_batches: Batch = 1
    """Batches whose gradients are added up for one optimizer step; it does not add negatives to a contrastive loss, for
    which `optimization.chunk_size` makes room."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute."""
    devices: Processes | Literal["auto"] = "auto"
    """Number of devices of one machine."""
    num_nodes: Processes = 1
    """Number of machines."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several devices share the work: `ddp` keeps the whole model on each; `auto` is `ddp`. `fsdp` keeps a part of
    the weights, the gradients and the optimizer's state on each, and gathers the weights of a block while it computes:
    less memory for more communication. Checkpoints are folders then, in parts too."""
    compile: Compile = "off"
    """Compile the towers with `torch.compile` for training: each block (`blocks`, soon compiled) or whole backbones
    (`model`). Numbers differ by rounding, and dropout draws others. Needs a C++ compiler, on a GPU Triton."""
    max_restarts: CountOrZero = 0
    """Times that processes which died are started again from the last checkpoint; a fault of the config or the data is
    not tried again. Processes that torchrun or SLURM started are theirs to restart."""
    timeout_minutes: Minutes = 60.0
    """Longest time without a step or a batch of a validation. Then a process is taken to be stuck: each prints where it
    stands, and all end."""
    deterministic: Flag = False
    """Only deterministic algorithms, at some cost in speed on a GPU."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)


@dataclass(frozen=True, kw_only=True)
class LabelsConfig(Section):
    """Names and notes for people. They change no number; they are recorded in the run, in its model card and in W&B."""

    model: Text = ""
    """Identifier of the model."""
    description: Text = ""
    """Purpose of the experiment."""
    version: Text = ""
    """Version of the project."""
    tags: tuple[Name, ...] = ()
    """Tags."""


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig(Section):
    """Root of the configuration: everything that decides a run."""

    name: Name = "experiment"
    """Name of the experiment."""
    seed: Seed = 0
    """Seed of the weights, the order of the data, augmentation and dropout."""
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    vision_encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Image tower."""
    text_encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(backbone="transformer"))
    """Text tower of an alignment; with a `decoder`, which reads the text, none is built."""
    audio_encoder: EncoderConfig | None = None
    """Audio tower; null for none."""
    decoder: DecoderConfig | None = None
    """Language model; null for alignment."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def towers(config: ExperimentConfig) -> Iterator[tuple[Modality, str, EncoderConfig]]:
    """Modality, key and config of each tower that the experiment has; with a decoder there is none for text."""
    yield "image", "vision_encoder", config.vision_encoder
    if config.decoder is None:
        yield "text", "text_encoder", config.text_encoder
    if config.audio_encoder is not None:
        yield "audio", "audio_encoder", config.audio_encoder


def is_pair(config: ExperimentConfig) -> bool:
    """True when image and text tower are the halves of one pretrained model, and `projection: auto` keeps its heads."""
    halves = image, text = config.vision_encoder, config.text_encoder
    return (
        config.decoder is None
        and image.backbone == text.backbone
        and image.backbone not in OURS
        and all(tower.checkpoint is None and tower.projection in ("auto", "none") for tower in halves)
        and not any(tower.use_attention_pooling or tower.use_perceiver or tower.pooling != "auto" for tower in halves)
    )
