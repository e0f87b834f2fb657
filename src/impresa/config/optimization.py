"""Optimizer, schedule and precision of an experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from impresa.config.types import (
    Count,
    CountOrZero,
    Flag,
    LayerDecay,
    NonNegative,
    Positive,
    Rate,
    Section,
)

Precision = Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true"]
OptimizerName = Literal["adamw", "adam", "sgd", "muon", "adamw8bit"]
SchedulerName = Literal["cosine", "linear", "constant", "const_cooldown"]


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig(Section):
    """Optimizer, learning-rate schedule and numeric precision."""

    optimizer: OptimizerName = "adamw"
    """Optimizer. `muon`: torch's Muon (Jordan 2024) for the matrices of blocks, with `lr` and weight decay as for the
    AdamW of the rest. `adamw8bit`: AdamW that keeps the moments of large matrices in eight bits (bitsandbytes)."""
    lr: Positive = 5e-4
    """Peak learning rate."""
    lr_pretrained: Positive | None = None
    """Learning rate of pretrained towers. null: `lr`."""
    layer_decay: LayerDecay = 1.0
    """Pretrained towers: the learning rate of each block is that of the block above it times this, and embeddings have
    that of the first block times this once more (Clark et al. 2020; Bao et al. 2021). 1: the same rate for all."""
    lr_memory: Positive | None = None
    """Learning rate of the memory tokens. null: `lr`."""
    lr_fusion: Positive | None = None
    """Learning rate of the fusion, including the projector. null: `lr`."""
    lr_lora: Positive | None = None
    """Learning rate of the adapters in the language model (`decoder.use_lora`). null: `lr`."""
    lr_logits: Positive | None = None
    """Learning rate of the logit scale and bias. null: `lr` for `clip`, 100 times `lr` for `siglip`."""
    weight_decay: NonNegative = 0.01
    """Weight decay; norms, biases, embeddings, the logit scale and memory are excluded."""
    betas: tuple[Rate, Rate] = (0.9, 0.999)
    """adamw, adam, adamw8bit, and the part of AdamW in muon: decay of the moment estimates. sgd: the first is the
    momentum."""
    eps: Positive = 1e-8
    """All but sgd: added to the denominator."""
    clip_grad: NonNegative = 1.0
    """Maximum norm of the gradient; 0 does not clip."""
    scheduler: SchedulerName = "cosine"
    """Learning rate after the warm-up: down to `min_lr` by half a cosine or linearly, constant, or constant and then
    linearly down over the last `cooldown_epochs` (`const_cooldown`)."""
    warmup_epochs: NonNegative = 5.0
    """Epochs of linear warm-up; cut to fit a shorter run."""
    warmup_steps: CountOrZero | None = None
    """Optimizer steps of warm-up instead of `warmup_epochs`; cut likewise. null: `warmup_epochs`."""
    cooldown_epochs: NonNegative = 5.0
    """const_cooldown: epochs of linear decay at the end; cut to the steps after the warm-up. A longer run stays at the
    peak for longer."""
    min_lr: NonNegative = 1e-6
    """Learning rate at the end."""
    precision: Precision = "32-true"
    """Numeric precision: full; mixed with 16-bit floats beside weights in float32, float16 only on a GPU and
    with a loss scale (`16-mixed`); or bfloat16 for weights, gradients and moments too (`bf16-true`): half the memory,
    but late steps are rounded away. The loss, the logit scale and the memory's state are in float32 throughout, and a
    finished run is stored in it."""
    chunk_size: Count | None = None
    """Rows of a contrastive batch that each tower encodes at a time, twice in a step, so that memory holds the
    activations of one chunk in place of the batch's: the same loss and gradients, for about a third more time. Dropout
    and `patch_dropout` draw for one chunk after the other, so other numbers than for the whole batch. null: all."""
    packing: Flag = False
    """Compute no padding in training: the texts of a contrastive batch lie end to end in a text tower of ours; in a
    pretrained one, and with a `decoder`, several short ones share a row, each of which sees itself alone. The same loss
    and gradients up to rounding, in less time the more lengths differ; dropout draws other numbers."""
    ema_decay: Rate | None = None
    """Decay of an exponential moving average of the weights, which is then validated, saved and evaluated instead of
    them. null: no average."""


def warmup_key(config: OptimizationConfig) -> str:
    """The key that says how long the warm-up is."""
    return "optimization.warmup_epochs" if config.warmup_steps is None else "optimization.warmup_steps"
