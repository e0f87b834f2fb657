"""The sentence that says of a run how long ago its best validation was."""

from __future__ import annotations

from collections.abc import Mapping

from impresa.config.types import CheckpointConfig
from impresa.evaluation.monitored import Mode, Monitored, monitored
from impresa.reports.charts import Curve

RECALL = "val_recall"


def overfitting(history: Mapping[str, Curve], config: CheckpointConfig) -> str | None:
    """The sentence for a run whose monitored metric was worse than its best for more than a third of it; else None.

    Args:
        history: metrics of the run.
        config: the metric, its direction, and which checkpoints were kept.
    """
    curve = history.get(config.monitor)
    if curve is None:
        return None
    found, end = monitored_curve(curve, config.mode), int(curve.steps[-1])
    if not found.is_worse_for_long(end):
        return None
    kept = f"the model is that of step {found.best_step}"
    if config.save_top_k == 0:
        kept = f"the model is that of step {end}, because trainer.checkpoint.save_top_k is 0"
    line = f"{config.monitor}: best at step {found.best_step} of {end}, and worse since; {kept}"
    recall = monitored_curve(history[RECALL], "max").best_step if RECALL in history else 0
    if config.monitor == "val_loss" and recall > found.best_step:
        how = f"trainer.checkpoint.monitor={RECALL} trainer.checkpoint.mode=max"
        line += f". {RECALL} was best at step {recall}: {how} keeps the model of that step"
    return line


def monitored_curve(curve: Curve, mode: Mode) -> Monitored:
    """The validations of a stored metric."""
    return monitored(mode, [(int(step), value) for step, value in zip(curve.steps, curve.values, strict=True)])
