"""The base of both dialects: scalar types, the class of all sections, and the sections that the dialects share.

A scalar type is strict, finite and bounded, so that the annotation is the whole rule. Strict means that `true` is no
number and `"12"` is no integer; a float accepts a whole number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AllowInfNan, BeforeValidator, ConfigDict, Strict, StringConstraints


def _without_switch(value: Any) -> Any:
    """`false` as null, and `true` as a switch, on command lines too, where all is text that may be text."""
    word = value.lower() if isinstance(value, str) else value
    return None if word is False or word == "false" else word == "true" or value


Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]
Name = Annotated[str, Strict(), StringConstraints(min_length=1)]
FolderOrNull = Annotated[Name | None, BeforeValidator(_without_switch)]
"""A folder for what is null, or in older configs false, without one."""
Names = Name | tuple[Name, ...]
"""One or several; read with `listed_names`."""
Count = Annotated[int, Strict(), Ge(1), Le(1_000_000_000)]
CountOrZero = Annotated[int, Strict(), Ge(0), Le(1_000_000_000)]
# Sizes of what is built have maxima that nobody needs to reach: a slip of the hand, or a stranger's config, is refused
# before it takes all memory.
Width = Annotated[int, Strict(), Ge(1), Le(16_384)]
Depth = Annotated[int, Strict(), Ge(1), Le(1_000)]
Tokens = Annotated[int, Strict(), Ge(1), Le(131_072)]
Vocabulary = Annotated[int, Strict(), Ge(1), Le(2_000_000)]
Pixels = Annotated[int, Strict(), Ge(1), Le(4_096)]
Images = Annotated[int, Strict(), Ge(1), Le(64)]
"""Of one question, or tiles of one image."""
PixelCount = Annotated[int, Strict(), Ge(1), Le(178_956_970)]
"""Of a whole image, at most Pillow's own limit."""
Mebibytes = Annotated[int, Strict(), Ge(1), Le(65_536)]
Gibibytes = Annotated[float, Strict(), AllowInfNan(False), Gt(0), Le(1_048_576)]
Batch = Annotated[int, Strict(), Ge(1), Le(1_000_000)]
Samples = Annotated[int, Strict(), Ge(1), Le(10_000_000)]
Processes = Annotated[int, Strict(), Ge(1), Le(1_024)]
ProcessesOrZero = Annotated[int, Strict(), Ge(0), Le(1_024)]
Seed = Annotated[int, Strict(), Ge(0), Le(2**32 - 1)]
Multiple = Annotated[float, Strict(), AllowInfNan(False), Gt(0), Le(64)]
Seconds = Annotated[float, Strict(), AllowInfNan(False), Gt(0), Le(3_600)]
Minutes = Annotated[float, Strict(), AllowInfNan(False), Gt(0), Le(100_000)]
Float = Annotated[float, Strict(), AllowInfNan(False)]
Positive = Annotated[float, Strict(), AllowInfNan(False), Gt(0)]
NonNegative = Annotated[float, Strict(), AllowInfNan(False), Ge(0)]
Fraction = Annotated[float, Strict(), AllowInfNan(False), Ge(0), Le(1)]
"""0 to 1, both included."""
Rate = Annotated[float, Strict(), AllowInfNan(False), Ge(0), Lt(1)]
"""A probability of dropping something: 0 keeps all, 1 would drop everything and is refused."""
PatchRate = Annotated[float, Strict(), AllowInfNan(False), Ge(0), Lt(0.95)]
"""A probability of dropping a patch; nearly all would leave nothing to learn from."""
LayerDecay = Annotated[float, Strict(), AllowInfNan(False), Ge(0.1), Le(1)]
"""A factor from layer to layer; a smaller one would leave all but the last layers as they are."""
Penalty = Annotated[float, Strict(), AllowInfNan(False), Ge(0.01), Le(100)]
"""A factor; beyond these bounds it would overflow."""
MAX_LOGIT_SCALE = 100.0
"""Of contrastive losses: they multiply cosines by no more, whatever is set or learned."""
LogitScale = Annotated[float, Strict(), AllowInfNan(False), Ge(1), Le(MAX_LOGIT_SCALE)]
Temperature = Annotated[float, Strict(), AllowInfNan(False), Ge(1 / MAX_LOGIT_SCALE)]
KeepCount = Annotated[int, Strict(), Ge(-1), Le(1_000_000_000)]
"""How many to keep: 0 none, -1 all."""

EmbeddingPrecision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
"""Numbers that embeddings are stored in, by the names of sentence-transformers."""

MemoryInit = Literal["learnable", "zeros", "orthogonal", "features"]
MemoryUpdate = Literal["attention", "gated", "static"]
MemoryPosition = Literal["prepend", "append"]


def listed_names(names: Names) -> list[str]:
    """The names of a field that takes one or several."""
    return [names] if isinstance(names, str) else list(names)


class Section:
    """The base of every config class: unknown keys are errors."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(Section):
    """Learned memory tokens with a running state, inside our own ViT (`vision_encoder.backbone: vit`)."""

    enabled: Flag = False
    """Enable memory tokens."""
    dim: Width = 512
    """Width of the memory tokens; linear layers project in and out when it differs from the encoder's width."""
    num_memory_tokens: Width = 64
    """Number of memory tokens."""
    memory_init: MemoryInit = "learnable"
    """Initialisation of the learned tokens: `learnable` (normal, std 0.02), `zeros`, `orthogonal`, `features` (patch
    embeddings sampled from the first batch)."""
    memory_update: MemoryUpdate = "attention"
    """How memory reads the image: `attention` (blend of read-out and token by `mem_alpha`), `gated` (one learned gate
    per token instead of `mem_alpha`), `static` (the learned tokens as they are, no state)."""
    memory_position: MemoryPosition = "prepend"
    """Where memory tokens are in the sequence: after CLS (`prepend`) or at the end (`append`). It changes no embedding:
    they have no position embedding, and attention without one is order-invariant."""
    mem_alpha: Fraction = 0.5
    """Blending coefficient: weight of the running state and of the read-out; 0 is `static`."""
    mem_reinit_steps: CountOrZero = 100
    """The running state is reset to zero before a forward pass, every N optimizer steps; 0 never resets."""
    memory_momentum: Fraction = 0.99
    """Share of the old running state that an optimizer step keeps."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig(Section):
    """Targets, names and intervals of logging; intervals count optimizer steps."""

    log_interval: Count = 10
    """Optimizer steps between two log entries; a run of fewer than 200 steps logs every step."""
    eval_interval: Count = 1000
    """Optimizer steps between two validations; also at the end, and each epoch when that is shorter."""
    save_interval: Count = 1000
    """Optimizer steps between two checkpoints; also at the end, and each epoch when that is shorter. `--resume`
    continues from the newest, whatever is kept when the run is over."""
    project: Name = "impresa"
    """Project name in W&B and TensorBoard."""
    entity: Text | None = None
    """Account in W&B."""
    name: Text | None = None
    """Name of the run in W&B and TensorBoard. null: the experiment's name."""
    wandb: Flag = False
    """Log to Weights & Biases (offline when there is no key or no network)."""
    tensorboard: Flag = True
    """Log to TensorBoard, in the run's `events/PROJECT/NAME`."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section):
    """Choice, folder and names of the checkpoints that are kept."""

    save_top_k: KeepCount = 3
    """Number of best checkpoints to keep; 0 keeps none, -1 all."""
    monitor: Name = "val_loss"
    """Validation metric that decides which is best, by its name in `metrics.csv`: `val_loss`, `val_perplexity`, or
    with `mode` max `val_recall` (R@1, mean of both directions), `val_exact_match`, `val_vqa_accuracy`, and others. The
    `val_loss` of a contrastive model rises on small data while recall still grows: `val_recall` keeps the better model
    there."""
    mode: Literal["min", "max"] = "min"
    """Direction in which the metric gets better."""
    save_last: Flag = True
    """Keep the last checkpoint when the run is over. false: it is removed then, and only used to resume before that."""
    dirpath: Name = "checkpoints"
    """Folder of the checkpoints inside the run directory."""
    filename: Name = "{epoch:03d}-{step:07d}"
    """File name pattern; `epoch`, `step` and logged metrics can be used."""
