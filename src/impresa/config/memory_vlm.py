"""The Memory-VLM dialect of the configuration (`model`, `training`, `project`) and its translation.

Names, types and defaults are those of the Memory-VLM configuration guide. `to_experiment` is the only reader: it turns
the tree into the `ExperimentConfig` that the engine works with. The keys that the guide does not have but a user of it
needs (`training.seed`, `training.precision`, `model.contrastive.learn_temperature`, `model.memory.memory_momentum`)
have defaults that leave the guide's meaning alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import ConfigDict

from impresa.config.experiment import (
    CONFIG_RULES,
    Augmentation,
    CheckpointConfig,
    DatasetConfig,
    EncoderConfig,
    ExperimentConfig,
    LabelsConfig,
    LoggingConfig,
    LossConfig,
    LossType,
    MemoryConfig,
    OptimizationConfig,
    OptimizerName,
    Precision,
    SchedulerName,
    TrainerConfig,
)
from impresa.config.types import Count, CountOrZero, Flag, KeepCount, Name, NonNegative, Positive, Rate, Text


@dataclass(frozen=True, kw_only=True)
class GuideMemoryConfig(MemoryConfig):
    """`model.memory`: the engine's memory settings, switched on."""

    enabled: Flag = True
    """Enable memory tokens."""


@dataclass(frozen=True, kw_only=True)
class GuideTextConfig:
    """`model.text`: the text encoder."""

    __pydantic_config__: ClassVar[ConfigDict] = CONFIG_RULES

    vocab_size: Count = 49408
    """Vocabulary size: an upper bound, the table has the size of the tokenizer trained on the captions."""
    max_len: Count = 77
    """Maximum sequence length in tokens."""
    embed_dim: Count = 512
    """Width of the text transformer."""
    depth: Count = 12
    """Number of transformer layers."""
    num_heads: Count = 8
    """Attention heads."""
    mlp_ratio: Positive = 4.0
    """MLP hidden width as a multiple of `embed_dim`."""


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """`model.contrastive`: the contrastive loss."""

    __pydantic_config__: ClassVar[ConfigDict] = CONFIG_RULES

    temperature: Positive = 0.07
    """Logit scaling temperature: the start, or the fixed value, see `learn_temperature`."""
    loss_type: LossType = "clip"
    """Loss function type."""
    gather_distributed: Flag = False
    """Gather embeddings across GPUs."""
    learn_temperature: Flag = True
    """Learn the temperature (an addition to the guide)."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """`model`: the vision encoder and what belongs to it."""

    __pydantic_config__: ClassVar[ConfigDict] = CONFIG_RULES

    name: Text = "memory_clip_vit_b_16"
    """Model identifier."""
    image_size: Count = 224
    """Input image resolution in pixels."""
    patch_size: Count = 16
    """ViT patch size in pixels."""
    embed_dim: Count = 512
    """Embedding dimension: width of the ViT and of the joint embedding."""
    depth: Count = 12
    """Number of transformer layers."""
    num_heads: Count = 8
    """Attention heads."""
    mlp_ratio: Positive = 4.0
    """MLP hidden width as a multiple of `embed_dim`."""
    drop_rate: Rate = 0.0
    """Dropout rate."""
    attn_drop_rate: Rate = 0.0
    """Attention dropout rate."""
    memory: GuideMemoryConfig = field(default_factory=GuideMemoryConfig)
    """Memory tokens."""
    text: GuideTextConfig = field(default_factory=GuideTextConfig)
    """Text encoder."""
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    """Contrastive loss."""


@dataclass(frozen=True, kw_only=True)
class OptimizerKwargs:
    """`training.optimizer.optimizer_kwargs`, also written `training.optimizer_kwargs`."""

    __pydantic_config__: ClassVar[ConfigDict] = CONFIG_RULES

    betas: tuple[Rate, Rate] = (0.9, 0.999)
    """Adam betas."""
    eps: Positive = 1e-8
    """Adam epsilon."""


@dataclass(frozen=True, kw_only=True)
class GuideOptimizerConfig:
    """`training.optimizer`."""

    __pydantic_config__: ClassVar[ConfigDict] = CONFIG_RULES

    optimizer: OptimizerName = "adamw"
    """Optimizer name; `training.optimizer=adamw` for short."""
    optimizer_kwargs: OptimizerKwargs = field(default_factory=OptimizerKwargs)
    """Its settings."""


@dataclass(frozen=True, kw_only=True)
class SchedulerKwargs:
    """`training.scheduler.scheduler_kwargs`, also written `training.scheduler_kwargs`."""

    __pydantic_config__: ClassVar[ConfigDict] = CONFIG_RULES

    warmup_epochs: CountOrZero = 5
    """Warmup epochs."""
    min_lr: NonNegative = 1e-6
    """Minimum learning rate."""


@dataclass(frozen=True, kw_only=True)
class GuideSchedulerConfig:
    """`training.scheduler`."""

    __pydantic_config__: ClassVar[ConfigDict] = CONFIG_RULES

    scheduler: SchedulerName = "cosine"
    """Scheduler name; `training.scheduler=cosine` for short."""
    scheduler_kwargs: SchedulerKwargs = field(default_factory=SchedulerKwargs)
    """Its settings."""


@dataclass(frozen=True, kw_only=True)
class GuideDataConfig:
    """`training.data`."""

    __pydantic_config__: ClassVar[ConfigDict] = CONFIG_RULES

    train_path: Name = "data/train"
    """Training data path."""
    val_path: Name = "data/val"
    """Validation data path."""
    image_size: Count = 224
    """Input image size in pixels; must be `model.image_size`, which the shipped YAML passes on."""
    augmentation: Augmentation = "clip"
    """Augmentation strategy."""
    num_workers: CountOrZero = 4
    """DataLoader workers."""
    prefetch_factor: Count = 2
    """Batches that each worker prepares ahead."""
    pin_memory: Flag = True
    """Pin memory for faster transfer."""
    persistent_workers: Flag = True
    """Keep workers alive."""


@dataclass(frozen=True, kw_only=True)
class GuideLoggingConfig:
    """`training.logging`."""

    __pydantic_config__: ClassVar[ConfigDict] = CONFIG_RULES

    log_interval: Count = 10
    """Logging frequency in optimizer steps."""
    eval_interval: Count = 1000
    """Evaluation frequency in optimizer steps."""
    save_interval: Count = 1000
    """Checkpoint frequency in optimizer steps."""
    project: Name = "memory-vlm"
    """W&B/TB project name."""
    entity: Text | None = None
    """W&B entity."""
    name: Name = "memory_clip"
    """Experiment name."""
    wandb: Flag = True
    """Use Weights & Biases."""
    tensorboard: Flag = True
    """Use TensorBoard."""


@dataclass(frozen=True, kw_only=True)
class GuideCheckpointConfig:
    """`training.checkpoint`."""

    __pydantic_config__: ClassVar[ConfigDict] = CONFIG_RULES

    save_top_k: KeepCount = 3
    """Number of best checkpoints to save."""
    monitor: Name = "val_loss"
    """Metric to monitor."""
    mode: Literal["min", "max"] = "min"
    """Monitoring mode."""
    save_last: Flag = True
    """Always save last checkpoint."""
    dirpath: Name = "checkpoints"
    """Checkpoint directory, relative to the run."""
    filename: Name = "{epoch:03d}-{step:07d}"
    """Checkpoint filename pattern."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """`training`."""

    __pydantic_config__: ClassVar[ConfigDict] = CONFIG_RULES

    epochs: Count = 100
    """Training epochs."""
    batch_size: Count = 256
    """Batch size per device."""
    accumulate_grad_batches: Count = 1
    """Gradient accumulation."""
    learning_rate: Positive = 5e-4
    """Learning rate."""
    weight_decay: NonNegative = 0.01
    """Weight decay."""
    clip_grad: NonNegative = 1.0
    """Gradient clipping norm."""
    seed: CountOrZero = 0
    """Seed (an addition to the guide)."""
    precision: Precision = "32-true"
    """Numeric precision (an addition to the guide)."""
    optimizer: GuideOptimizerConfig = field(default_factory=GuideOptimizerConfig)
    """Optimizer."""
    scheduler: GuideSchedulerConfig = field(default_factory=GuideSchedulerConfig)
    """Scheduler."""
    data: GuideDataConfig = field(default_factory=GuideDataConfig)
    """Data."""
    logging: GuideLoggingConfig = field(default_factory=GuideLoggingConfig)
    """Logging."""
    checkpoint: GuideCheckpointConfig = field(default_factory=GuideCheckpointConfig)
    """Checkpoints."""


@dataclass(frozen=True, kw_only=True)
class ProjectConfig:
    """`project`: metadata, recorded in the run and in W&B."""

    __pydantic_config__: ClassVar[ConfigDict] = CONFIG_RULES

    name: Name = "memory-vlm"
    """Name of the project."""
    description: Text = ""
    """What it is about."""
    version: Text = ""
    """Its version."""
    tags: tuple[Name, ...] = ()
    """Tags."""


@dataclass(frozen=True, kw_only=True)
class MemoryVLMConfig:
    """Root of the Memory-VLM dialect."""

    __pydantic_config__: ClassVar[ConfigDict] = CONFIG_RULES

    model: ModelConfig = field(default_factory=ModelConfig)
    """Model architecture."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Training hyperparameters."""
    project: ProjectConfig = field(default_factory=ProjectConfig)
    """Project metadata."""


LABELS = frozenset(
    {
        "model.name",
        "training.logging.project",
        "training.logging.entity",
        "training.logging.name",
        "project.name",
        "project.description",
        "project.version",
        "project.tags",
    }
)
"""Fields of the guide that name things and change no number; everything else changes what a run computes or does."""


def to_experiment(config: MemoryVLMConfig) -> ExperimentConfig:
    """Translate the guide's dialect into the engine's; pure, and no field is dropped.

    `model.embed_dim` is both the ViT's width and the width of the joint embedding. Image tokens are pooled as they are
    (no projection before pooling), as in CLIP. That `training.data.image_size` equals `model.image_size` is checked
    before (`impresa.config.checks`).
    """
    model, training, project = config.model, config.training, config.project
    memory, text, contrastive = model.memory, model.text, model.contrastive
    data, logging, checkpoint = training.data, training.logging, training.checkpoint
    return ExperimentConfig(
        name=project.name,
        seed=training.seed,
        labels=LabelsConfig(
            model=model.name, description=project.description, version=project.version, tags=project.tags
        ),
        dataset=DatasetConfig(
            train_path=data.train_path,
            val_path=data.val_path,
            batch_size=training.batch_size,
            image_size=data.image_size,
            augmentation=data.augmentation,
            num_workers=data.num_workers,
            prefetch_factor=data.prefetch_factor,
            pin_memory=data.pin_memory,
            persistent_workers=data.persistent_workers,
        ),
        vision_encoder=EncoderConfig(
            backbone="vit",
            embed_dim=model.embed_dim,
            dim=model.embed_dim,
            patch_size=model.patch_size,
            depth=model.depth,
            num_heads=model.num_heads,
            mlp_ratio=model.mlp_ratio,
            drop_rate=model.drop_rate,
            attn_drop_rate=model.attn_drop_rate,
            projection="none",
            memory=MemoryConfig(
                enabled=memory.enabled,
                dim=memory.dim,
                num_memory_tokens=memory.num_memory_tokens,
                memory_init=memory.memory_init,
                memory_update=memory.memory_update,
                memory_position=memory.memory_position,
                mem_alpha=memory.mem_alpha,
                mem_reinit_steps=memory.mem_reinit_steps,
                memory_momentum=memory.memory_momentum,
            ),
        ),
        text_encoder=EncoderConfig(
            backbone="transformer",
            embed_dim=model.embed_dim,
            dim=text.embed_dim,
            vocab_size=text.vocab_size,
            max_len=text.max_len,
            depth=text.depth,
            num_heads=text.num_heads,
            mlp_ratio=text.mlp_ratio,
            projection="none",
        ),
        losses=LossConfig(
            type=contrastive.loss_type,
            temperature=contrastive.temperature,
            learn_temperature=contrastive.learn_temperature,
            gather_distributed=contrastive.gather_distributed,
        ),
        optimization=OptimizationConfig(
            optimizer=training.optimizer.optimizer,
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
            betas=training.optimizer.optimizer_kwargs.betas,
            eps=training.optimizer.optimizer_kwargs.eps,
            clip_grad=training.clip_grad,
            scheduler=training.scheduler.scheduler,
            warmup_epochs=training.scheduler.scheduler_kwargs.warmup_epochs,
            min_lr=training.scheduler.scheduler_kwargs.min_lr,
            precision=training.precision,
        ),
        trainer=TrainerConfig(
            epochs=training.epochs,
            accumulate_grad_batches=training.accumulate_grad_batches,
            logging=LoggingConfig(
                log_interval=logging.log_interval,
                eval_interval=logging.eval_interval,
                save_interval=logging.save_interval,
                project=logging.project,
                entity=logging.entity,
                name=logging.name,
                wandb=logging.wandb,
                tensorboard=logging.tensorboard,
            ),
            checkpoint=CheckpointConfig(
                save_top_k=checkpoint.save_top_k,
                monitor=checkpoint.monitor,
                mode=checkpoint.mode,
                save_last=checkpoint.save_last,
                dirpath=checkpoint.dirpath,
                filename=checkpoint.filename,
            ),
        ),
    )
