"""How long a training run takes, from some steps of it."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any

from impresa.training.distributed import leave_cores_to_workers
from impresa.training.loop import Training, steps_of, train_step, validate

MOST_STEPS = 20
MOST_SECONDS = 4.0
"""Of measured steps, of which there is one at least."""


@dataclass(frozen=True)
class Pace:
    """Time of some steps and a batch of validation, and what follows for the whole run."""

    num_steps: int
    """Measured, after the first one, which takes longer."""
    measuring_seconds: float
    step_seconds: float
    training_seconds: float
    """Of all steps and validations of the run, and of an evaluation at its end that takes as long as a validation."""
    samples_per_step: float
    """Of one process, on average."""
    tokens_per_step: float
    """Of their texts, without padding."""
    first_samples: int
    """Of the first step, in this process."""


def measure(training: Training, *meters: AbstractContextManager[Any]) -> tuple[Pace, dict[str, float]]:
    """Make the first steps of a run and validate one batch; returns the pace, and the metrics of that batch. The first
    step, which is not timed, is made inside of the meters."""
    leave_cores_to_workers(training.config.dataset.num_workers)
    begun = time.monotonic()
    ends: list[float] = []
    num_samples = num_tokens = first_samples = 0
    for batches in islice(
        steps_of(training.train_loader, training.config.trainer.accumulate_grad_batches), MOST_STEPS + 1
    ):
        with ExitStack() as stack:
            for meter in () if ends else meters:
                stack.enter_context(meter)
            train_step(training, batches)["loss"].item()  # waits for a GPU
        ends.append(time.monotonic())
        num_samples += sum(map(len, batches))
        first_samples = first_samples or num_samples
        num_tokens += sum(batch.num_tokens for batch in batches)
        if ends[-1] - ends[0] > MOST_SECONDS or len(ends) == training.plan.total_steps:
            break
    metrics = validate(training, num_batches=1)
    end = time.monotonic()
    plan, num_steps = training.plan, len(ends) - 1
    step_seconds = (ends[-1] - ends[0]) / num_steps if num_steps else ends[0] - begun
    num_validations = sum(map(plan.evaluates_after, range(1, plan.total_steps + 1)))
    validation_seconds = (end - ends[-1]) * len(training.val_loader)
    training_seconds = plan.total_steps * step_seconds + (num_validations + 1) * validation_seconds
    each = num_samples / len(ends), num_tokens / len(ends)
    return Pace(num_steps, end - begun, step_seconds, training_seconds, *each, first_samples), metrics
