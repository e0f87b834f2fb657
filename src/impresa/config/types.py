"""The base of both dialects: scalar types, the class of all sections, and the sections that the dialects share.

A scalar type is strict, finite and bounded, so that the annotation is the whole rule. Strict means that `true` is no
number and `"12"` is no integer; a float accepts a whole number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AllowInfNan, ConfigDict, Strict, StringConstraints

Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]
Name = Annotated[str, Strict(), StringConstraints(min_length=1)]
Count = Annotated[int, Strict(), Ge(1)]
CountOrZero = Annotated[int, Strict(), Ge(0)]
Float = Annotated[float, Strict(), AllowInfNan(False)]
Positive = Annotated[float, Strict(), AllowInfNan(False), Gt(0)]
NonNegative = Annotated[float, Strict(), AllowInfNan(False), Ge(0)]
Fraction = Annotated[float, Strict(), AllowInfNan(False), Ge(0), Le(1)]
"""0 to 1, both included."""
Rate = Annotated[float, Strict(), AllowInfNan(False), Ge(0), Lt(1)]
"""A probability of dropping something: 0 keeps all, 1 would drop everything and is refused."""
KeepCount = Annotated[int, Strict(), Ge(-1)]
"""How many to keep: 0 none, -1 all."""

MemoryInit = Literal["learnable", "zeros", "orthogonal", "features"]
MemoryUpdate = Literal["attention", "gated", "static"]
MemoryPosition = Literal["prepend", "append"]


class Section:
    """The base of every config class: unknown keys are errors."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(Section):
    """Learned memory tokens with a running state, inside our own ViT (`vision_encoder.backbone: vit`)."""

    enabled: Flag = False
    """Enable memory tokens."""
    dim: Count = 512
    """Width of the memory tokens; a linear layer leads in and out when it is not the encoder's width."""
    num_memory_tokens: Count = 64
    """Number of memory tokens."""
    memory_init: MemoryInit = "learnable"
    """Start of the learned tokens: `learnable` (normal, std 0.02), `zeros`, `orthogonal`, `features` (patch embeddings
    sampled from the first batch)."""
    memory_update: MemoryUpdate = "attention"
    """How memory reads the image: `attention` (blend of read-out and token by `mem_alpha`), `gated` (one learned gate
    per token in place of `mem_alpha`), `static` (the learned tokens as they are, no state)."""
    memory_position: MemoryPosition = "prepend"
    """Where memory tokens stand: after CLS (`prepend`) or at the end (`append`)."""
    mem_alpha: Fraction = 0.5
    """Blending coefficient: weight of the running state and of the read-out; 0 is `static`."""
    mem_reinit_steps: CountOrZero = 100
    """The running state is reset to zero before the forward after every so many optimizer steps; 0 never resets."""
    memory_momentum: Fraction = 0.99
    """Share of the old running state that an optimizer step keeps."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig(Section):
    """Targets, names and intervals of logging; intervals count optimizer steps."""

    log_interval: Count = 10
    """Optimizer steps between two log entries."""
    eval_interval: Count = 1000
    """Optimizer steps between two validations; also at the end, and each epoch when that is shorter."""
    save_interval: Count = 1000
    """Optimizer steps between two checkpoints; also at the end, and each epoch when that is shorter."""
    project: Name = "impresa"
    """Project name in W&B."""
    entity: Text | None = None
    """Account in W&B."""
    name: Text | None = None
    """Name of the run in W&B and TensorBoard. null: the experiment's name."""
    wandb: Flag = False
    """Log to Weights & Biases (offline when there is no key or no network)."""
    tensorboard: Flag = True
    """Log to TensorBoard, in the run's `events` folder."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section):
    """Choice, folder and names of the checkpoints that are kept."""

    save_top_k: KeepCount = 3
    """Number of best checkpoints to keep; 0 keeps none, -1 all."""
    monitor: Name = "val_loss"
    """Metric that says which is best."""
    mode: Literal["min", "max"] = "min"
    """Direction in which the metric gets better."""
    save_last: Flag = True
    """Always keep the last checkpoint as well."""
    dirpath: Name = "checkpoints"
    """Folder of the checkpoints inside the run directory."""
    filename: Name = "{epoch:03d}-{step:07d}"
    """File name pattern; `epoch`, `step` and logged metrics can be used."""
