"""The Memory-VLM dialect of the configuration (`model`, `training`, `project`) and its translation.

Names, types and defaults are those of the Memory-VLM configuration guide; a field without a docstring means the same as
the engine's field that it sets (`GUIDE_KEYS`). `to_experiment` is the only reader: it turns the tree into the
`ExperimentConfig` that the engine works with. The keys that the guide does not have but a user of it needs
(`training.seed`, `training.precision`, `model.contrastive.learn_temperature`, `model.memory.memory_momentum`) have
defaults that leave the guide's meaning alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Any

from impresa.config.augmentation import Augmentation
from impresa.config.describe import Fault, raise_faults, show
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.config.losses import LossType
from impresa.config.optimization import OptimizerName, Precision, SchedulerName
from impresa.config.tree import hints, leaves, merge, nested
from impresa.config.types import (
    Batch,
    CheckpointConfig,
    Count,
    CountOrZero,
    Depth,
    Flag,
    LoggingConfig,
    MemoryConfig,
    Multiple,
    Name,
    NonNegative,
    Pixels,
    Positive,
    Processes,
    ProcessesOrZero,
    Rate,
    Section,
    Seed,
    Temperature,
    Text,
    Tokens,
    Vocabulary,
    Width,
)


@dataclass(frozen=True, kw_only=True)
class GuideMemoryConfig(MemoryConfig):
    """Memory tokens, which this dialect enables by default."""

    enabled: Flag = True


@dataclass(frozen=True, kw_only=True)
class GuideTextConfig(Section):
    """Text encoder."""

    vocab_size: Vocabulary = 49408
    max_len: Tokens = 77
    embed_dim: Width = 512
    depth: Depth = 12
    num_heads: Width = 8
    mlp_ratio: Multiple = 4.0


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(Section):
    """Contrastive loss."""

    temperature: Temperature = 0.07
    """Logit scaling temperature: the start, or the fixed value, see `learn_temperature`."""
    loss_type: LossType = "clip"
    gather_distributed: Flag = False
    learn_temperature: Flag = True


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """Vision encoder, text encoder and contrastive loss."""

    name: Text = "memory_clip_vit_b_16"
    image_size: Pixels = 224
    """Input image resolution in pixels."""
    patch_size: Pixels = 16
    embed_dim: Width = 512
    """Embedding dimension: width of the ViT and of the joint embedding."""
    depth: Depth = 12
    num_heads: Width = 8
    mlp_ratio: Multiple = 4.0
    drop_rate: Rate = 0.0
    attn_drop_rate: Rate = 0.0
    memory: GuideMemoryConfig = field(default_factory=GuideMemoryConfig)
    text: GuideTextConfig = field(default_factory=GuideTextConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)


@dataclass(frozen=True, kw_only=True)
class OptimizerKwargs(Section):
    """Settings of the optimizer, also written `training.optimizer_kwargs`."""

    betas: tuple[Rate, Rate] = (0.9, 0.999)
    eps: Positive = 1e-8


@dataclass(frozen=True, kw_only=True)
class GuideOptimizerConfig(Section):
    """Optimizer and its settings."""

    optimizer: OptimizerName = "adamw"
    """Optimizer name; `training.optimizer=adamw` for short."""
    optimizer_kwargs: OptimizerKwargs = field(default_factory=OptimizerKwargs)


@dataclass(frozen=True, kw_only=True)
class SchedulerKwargs(Section):
    """Settings of the scheduler, also written `training.scheduler_kwargs`."""

    warmup_epochs: CountOrZero = 5
    min_lr: NonNegative = 1e-6


@dataclass(frozen=True, kw_only=True)
class GuideSchedulerConfig(Section):
    """Scheduler and its settings."""

    scheduler: SchedulerName = "cosine"
    """Scheduler name; `training.scheduler=cosine` for short."""
    scheduler_kwargs: SchedulerKwargs = field(default_factory=SchedulerKwargs)


@dataclass(frozen=True, kw_only=True)
class GuideDataConfig(Section):
    """Data, and how it is loaded."""

    train_path: Name = "data/train"
    val_path: Name = "data/val"
    """Validation data path."""
    image_size: Pixels = 224
    """Input image size in pixels; must be `model.image_size`, which the shipped YAML passes on."""
    augmentation: Augmentation = "clip"
    num_workers: ProcessesOrZero = 4
    prefetch_factor: Processes = 2
    pin_memory: Flag = True
    persistent_workers: Flag = True


@dataclass(frozen=True, kw_only=True)
class GuideLoggingConfig(LoggingConfig):
    """Logging, by default also to W&B."""

    project: Name = "memory-vlm"
    name: Name = "memory_clip"
    """Name of the run in W&B and TensorBoard."""
    wandb: Flag = True


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Section):
    """Hyperparameters of training, data, logging and checkpoints."""

    epochs: Count = 100
    batch_size: Batch = 256
    accumulate_grad_batches: Batch = 1
    learning_rate: Positive = 5e-4
    weight_decay: NonNegative = 0.01
    clip_grad: NonNegative = 1.0
    seed: Seed = 0
    precision: Precision = "32-true"
    optimizer: GuideOptimizerConfig = field(default_factory=GuideOptimizerConfig)
    scheduler: GuideSchedulerConfig = field(default_factory=GuideSchedulerConfig)
    data: GuideDataConfig = field(default_factory=GuideDataConfig)
    logging: GuideLoggingConfig = field(default_factory=GuideLoggingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)


@dataclass(frozen=True, kw_only=True)
class ProjectConfig(Section):
    """Metadata of the project, recorded in the run and in W&B."""

    name: Name = "memory-vlm"
    description: Text = ""
    version: Text = ""
    tags: tuple[Name, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MemoryVLMConfig(Section):
    """Root of the Memory-VLM dialect."""

    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    project: ProjectConfig = field(default_factory=ProjectConfig)


ENGINE, GUIDE = "experiment", "memory_vlm"
SCHEMAS: dict[str, type] = {ENGINE: ExperimentConfig, GUIDE: MemoryVLMConfig}
TOP_LEVEL = {name: frozenset(f.name for f in fields(schema)) for name, schema in SCHEMAS.items()}

LABELS = {
    *(f"project.{name}" for name in hints(ProjectConfig)),
    *("model.name", "training.logging.project", "training.logging.entity", "training.logging.name"),
}
"""Keys of the guide that name things and change no number; everything else changes what a run computes or does."""


def _same(engine: str, guide: str, *names: str) -> dict[str, str]:
    return {f"{engine}.{name}": f"{guide}.{name}" for name in names}


GUIDE_KEYS: dict[str, str] = {
    "name": "project.name",
    "seed": "training.seed",
    "labels.model": "model.name",
    **_same("labels", "project", "description", "version", "tags"),
    **_same("dataset", "training.data", "train_path", "val_path", "image_size", "augmentation"),
    **_same("dataset", "training.data", "num_workers", "prefetch_factor", "pin_memory", "persistent_workers"),
    "dataset.batch_size": "training.batch_size",
    "vision_encoder.embed_dim": "model.embed_dim",
    "vision_encoder.dim": "model.embed_dim",
    **_same("vision_encoder", "model", "depth", "num_heads", "mlp_ratio", "drop_rate", "attn_drop_rate", "patch_size"),
    **_same("vision_encoder.memory", "model.memory", *hints(MemoryConfig)),
    "text_encoder.embed_dim": "model.embed_dim",
    "text_encoder.dim": "model.text.embed_dim",
    **_same("text_encoder", "model.text", "depth", "num_heads", "mlp_ratio", "vocab_size", "max_len"),
    "losses.type": "model.contrastive.loss_type",
    **_same("losses", "model.contrastive", "temperature", "learn_temperature", "gather_distributed"),
    "optimization.optimizer": "training.optimizer.optimizer",
    "optimization.lr": "training.learning_rate",
    **_same("optimization", "training", "weight_decay", "clip_grad", "precision"),
    **_same("optimization", "training.optimizer.optimizer_kwargs", "betas", "eps"),
    "optimization.scheduler": "training.scheduler.scheduler",
    **_same("optimization", "training.scheduler.scheduler_kwargs", "warmup_epochs", "min_lr"),
    **_same("trainer", "training", "epochs", "accumulate_grad_batches"),
    **_same("trainer.logging", "training.logging", *hints(LoggingConfig)),
    **_same("trainer.checkpoint", "training.checkpoint", *hints(CheckpointConfig)),
}
"""Engine key -> the guide's key that sets it. `model.embed_dim` is the width of the ViT and of the joint embedding;
that `model.image_size` equals `training.data.image_size` is checked before (`impresa.config.rules`)."""
ENGINE_KEYS = {guide: engine for engine, guide in GUIDE_KEYS.items()}
"""The guide's key -> the engine's key that it sets, the last one of several."""


def to_experiment(config: MemoryVLMConfig) -> ExperimentConfig:
    """Translate the guide's dialect into the engine's; pure, and no field is dropped.

    Image tokens are pooled as they are (no projection before pooling), as in CLIP.
    """
    vision = EncoderConfig(projection="none")
    experiment = ExperimentConfig(vision_encoder=vision, text_encoder=replace(vision, backbone="transformer"))
    for engine_key, guide_key in GUIDE_KEYS.items():
        experiment = _replaced(experiment, engine_key, attrgetter(guide_key)(config))
    return experiment


def _replaced(config: Any, key: str, value: Any) -> Any:
    """`config` with another value at a dotted key."""
    name, _, rest = key.partition(".")
    return replace(config, **{name: _replaced(getattr(config, name), rest, value) if rest else value})


def both_names(key: str) -> str:
    """An engine key, followed by the guide's name if there is one: for faults found after the translation."""
    return f"{key} ({GUIDE_KEYS[key]})" if key in GUIDE_KEYS else key


def expand_short_paths(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with the full path in place of each short one, before anything is composed.

    Short are `training.optimizer=adamw`, `training.optimizer_kwargs.*` and the same for `scheduler`.

    Raises:
        ConfigError: a value is given by both paths and differs.
    """
    training = tree.get("training")
    if not isinstance(training, Mapping):
        return dict(tree)
    full, faults = dict(training), []
    for part in ("optimizer", "scheduler"):
        settings = f"{part}_kwargs"
        if part in full and not isinstance(full[part], Mapping):
            full[part] = {part: full[part]}
        if settings in full:
            known, added = dict(leaves(full.get(part, {}))), {settings: full.pop(settings)}
            twice = [(path, item) for path, item in leaves(added) if known.get(path, item) != item]
            faults += [_given_twice(f"training.{part}.{path}", known[path], item) for path, item in twice]
            full[part] = merge(full.get(part, {}), added)
    raise_faults(faults)
    return {**tree, "training": full}


def expand_short_overrides(overrides: Sequence[tuple[str, Any]], faults: list[Fault]) -> list[tuple[str, Any]]:
    """Overrides (dotted key, value) with full keys in place of short ones; the last of equal keys wins.

    A value that is given by both paths and differs is appended to `faults`.
    """
    expanded: list[tuple[str, Any]] = []
    spelled: dict[str, tuple[str, Any]] = {}
    for key, value in overrides:
        short = key.split(".")[0] == "training"
        rewritten = list(leaves(expand_short_paths(nested(key, value)))) if short else [(key, value)]
        for full, leaf in rewritten:
            earlier = spelled.setdefault(full, (key, leaf))
            if earlier[0] != key and earlier[1] != leaf:
                faults.append(_given_twice(full, earlier[1], leaf))
            spelled[full] = (key, leaf)
        expanded += rewritten
    return expanded


def _given_twice(key: str, first: Any, second: Any) -> Fault:
    return Fault(key, f"is given twice, by its short and its full path, as {show(first)} and {show(second)}; keep one")
