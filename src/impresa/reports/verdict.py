"""The sentences on a model that finds no more than simple baselines do, and what in its run may be the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from impresa.config.encoder import is_from_scratch
from impresa.config.experiment import ExperimentConfig
from impresa.evaluation.results import HISTOGRAM, RIDGE, Evaluation, Margin
from impresa.reports.charts import Curve, last_step, read_history
from impresa.reports.overfitting import monitored_curve

BASELINES = {
    HISTOGRAM: ("a colour histogram", "canonical correlations of an image's colours with the words of captions"),
    RIDGE: ("the ridge baseline", "a ridge regression from the image at 16 x 16 pixels to the TF-IDF of its caption"),
}
"""Name of a baseline within a sentence, and how it works."""
FEW_STEPS = 500
FEW_SAMPLES = 5000
SMALL_PX = 64
MUCH_CUT = 0.15


def baseline_note(evaluation: Evaluation) -> str:
    """Explains the fitted baselines of a table of retrieval; nothing where there are none."""
    shown = [f"{name}: {how}" for name, (_, how) in BASELINES.items() if name in evaluation.baselines]
    if not shown:
        return ""
    text = (
        f"{'; '.join(shown)}. Fitted on at most 4,096 training samples; a model that is worth its training finds more."
    )
    return text[0].upper() + text[1:]


def retrieval_verdict(evaluation: Evaluation) -> list[str]:
    """One paragraph for a model that finds no more than a baseline; nothing for one that finds more, or everything."""
    behind = [
        _sentence(BASELINES[name][0], margin)
        for name, margin in evaluation.margins.items()
        if name in BASELINES and margin.value <= 0 and margin.model < 1
    ]
    if not behind:
        return []
    reasons = [f"Likely reasons: {'; '.join(evaluation.reasons)}."] if evaluation.reasons else []
    return [" ".join([*behind, *reasons])]


def _sentence(baseline: str, margin: Margin) -> str:
    bounds, is_less = margin.interval, margin.interval is None or margin.interval.excludes_zero
    interval = "" if bounds is None else f", 95% interval {bounds.low:+.3f} to {bounds.high:+.3f} over the images"
    return (
        f"The model finds {'less' if is_less and margin.value else 'no more'} than {baseline} does: "
        f"MRR {margin.model:.3f} against {margin.baseline:.3f} ({margin.value:+.3f}{interval})."
    )


def crop_warning(share_cut: float | None) -> list[str]:
    """The sentence for images of which a centre square leaves out much, as a mean share of their area, 0 to 1."""
    if share_cut is None or share_cut <= MUCH_CUT:
        return []
    return [
        f"The square crop leaves out {share_cut:.0%} of the images' area (mean): dataset.resize=pad shows them whole."
    ]


def with_reasons(evaluation: Evaluation, config: ExperimentConfig, run_dir: Path) -> Evaluation:
    """The evaluation with likely reasons, read from the run, for a model that finds no more than a baseline."""
    if not retrieval_verdict(evaluation):
        return evaluation
    return replace(evaluation, reasons=tuple(likely_reasons(evaluation, config, read_history(run_dir))))


def likely_reasons(evaluation: Evaluation, config: ExperimentConfig, history: Mapping[str, Curve]) -> list[str]:
    """Parts of a sentence, each with the key that changes it."""
    reasons = []
    if about_length := _length(config, history):
        reasons.append(about_length)
    num_train, scratch = evaluation.num_train, is_from_scratch("image", config.vision_encoder)
    if num_train is not None and num_train < FEW_SAMPLES and scratch:
        few = f"{num_train:,} training images are few for an image encoder from scratch"
        reasons.append(f"{few}, of which a pretrained vision_encoder.backbone needs less")
    size_px, side_px = config.dataset.image_size, evaluation.image_side_px
    if side_px is not None and size_px <= SMALL_PX and side_px >= 2 * size_px:
        reasons.append(f"it sees larger images at {size_px} px (dataset.image_size)")
    return reasons


def _length(config: ExperimentConfig, history: Mapping[str, Curve]) -> str | None:
    """Too long, too short, or neither."""
    num_steps = last_step(history)
    if not num_steps:
        return None
    name = config.trainer.checkpoint.monitor
    if (curve := history.get(name)) is not None:
        found = monitored_curve(curve, config.trainer.checkpoint.mode)
        if found.is_worse_for_long(num_steps):
            return f"it overfits ({name} was best at step {found.best_step:,} of {num_steps:,})"
        if num_steps >= FEW_STEPS and len(curve.steps) > 1 and not found.num_since:
            return f"{name} was still getting better at the end (trainer.epochs)"
    return f"{num_steps:,} steps of training are few (trainer.epochs)" if num_steps < FEW_STEPS else None
