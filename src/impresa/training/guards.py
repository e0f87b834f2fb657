"""Guards of a training run: what is not finite ends it before the step, and a loss that jumps is named."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import median
from typing import Any

import torch
from torch import Tensor

from impresa.config.experiment import ExperimentConfig
from impresa.config.optimization import warmup_key
from impresa.errors import TrainingError
from impresa.training.distributed import Group

logger = logging.getLogger(__name__)

SPIKE_WINDOW, LEAST_LOSSES = 100, 20
"""Steps behind that a loss is compared with, and how many of them there must be."""
SPIKE_DEVIATIONS = 10.0
"""Median absolute deviations above the median that make a spike. Of normal noise that is 6.7 standard deviations."""
LEAST_RISE = 0.1
"""Share of the median that a spike rises above it at least: a loss that hardly moves has no deviations."""
_NAMED = 8
"""Samples that a line names."""


class DivergedError(TrainingError):
    """The loss or the gradient is not finite; no step was made of it."""


def refuse_divergence(
    config: ExperimentConfig,
    group: Group,
    step: int,
    *,
    batches: Sequence[Any],
    losses: Sequence[Tensor],
    loss: Tensor,
    norm: Tensor,
    may_overflow: bool,
) -> float:
    """The loss as a number; stop before weights become NaN. Nothing else in a step waits for the GPU.

    Args:
        config: the experiment.
        group: all processes of it make this call together.
        step: number of the step that would be made.
        batches: of this process.
        losses: one of each batch.
        loss: of the whole step, the same in all processes: all of them stop or none.
        norm: of the gradient, likewise.
        may_overflow: a gradient that is not finite makes the loss scale smaller, and the step is left out.

    Raises:
        DivergedError: names the step and samples of the batches that were not finite, whichever process had them.
    """
    value, gradient = torch.stack((loss, norm.to(loss))).tolist()
    loss_is_finite = isfinite(value)
    if loss_is_finite and (isfinite(gradient) or may_overflow):
        return value
    if not loss_is_finite and (unusable := group.gather(_with_bad_pixels(batches))):
        raise DivergedError(f"step {step}: not finite pixels in {_named(unusable)}; remove these images")
    faulty = [batch for batch, own in zip(batches, losses, strict=True) if not bool(own.isfinite())]
    suspects = group.gather(id for batch in faulty for id in batch.ids)
    samples = suspects or group.gather(id for batch in batches for id in batch.ids)
    optimization = config.optimization
    what = "the gradient is not finite" if loss_is_finite else f"the loss is {value}"
    fix = f"lower optimization.lr ({optimization.lr:g}) or lengthen {warmup_key(optimization)}"
    if optimization.clip_grad == 0:
        fix += ", and clip gradients (optimization.clip_grad=1)"
    if optimization.precision == "16-mixed":
        fix += "; float16 overflows easily: optimization.precision=bf16-mixed does not"
    why = "most likely because the steps are too large"
    raise DivergedError(f"step {step}: {what}, with the samples {_named(samples)}, {why}; {fix}")


class SpikeWatch:
    """Names steps whose loss jumps: above the median of the last `SPIKE_WINDOW` losses by more than `SPIKE_DEVIATIONS`
    times their median absolute deviation, and by more than a tenth of the median.

    A spike is often a batch of faulty samples, or the first sign of steps that are too large. One line in a window.

    Args:
        group: the processes of the step, whose samples are named.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._losses: deque[float] = deque(maxlen=SPIKE_WINDOW)
        self._silent_until = 0

    def after_step(self, step: int, batches: Sequence[Any], logs: Mapping[str, Tensor]) -> None:
        """Look at the `loss` of optimizer step number `step`, which all processes have."""
        loss, before = logs["loss"].item(), self._losses
        if len(before) >= LEAST_LOSSES and step > self._silent_until:
            middle = median(before)
            deviation = median(abs(other - middle) for other in before)
            if loss - middle > max(SPIKE_DEVIATIONS * deviation, LEAST_RISE * abs(middle)):
                self._silent_until = step + SPIKE_WINDOW
                ids = self._group.gather(id for batch in batches for id in batch.ids)
                rule = (
                    f"the median of the {len(before)} steps before it is {middle:.4g}, their deviation {deviation:.2g}"
                )
                logger.warning(f"step {step}: the loss jumps to {loss:.4g} ({rule}); samples: {_named(ids)}")
        before.append(loss)


def _with_bad_pixels(batches: Sequence[Any]) -> list[str]:
    found = []
    for batch in batches:
        if batch.image is not None and len(batch) == len(batch.image):
            found += [name for name, image in zip(batch.ids, batch.image, strict=True) if not image.isfinite().all()]
    return found


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return f"{', '.join(ids[:_NAMED])}{more}"
