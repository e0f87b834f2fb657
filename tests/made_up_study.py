"""Results of studies that nobody trained, with effects that are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from impresa.ablation.results import RunResult, StudyResult
from impresa.ablation.study import BASE, NULL, Study, Switch, Variant
from impresa.reports.charts import Curve
from impresa.run_dir.cost import Cost

NAMES = (
    "vision_encoder.use_perceiver=false",
    "vision_encoder.memory.memory_position=append",
    "vision_encoder.memory.memory_update=gated",
    "vision_encoder.perceiver_num_layers=4",
    "losses.type=siglip",
    "losses.sample_single_mrl_dim=true",
    "optimization.scheduler.warmup_steps=500",
    "vision_encoder.use_attention_pooling=false, vision_encoder.pooling=mean",
    "vision_encoder.depth=3",
    "vision_encoder.depth=12",
    "text_encoder.backbone=a/very-long-organisation-name/with-a-text-tower-of-many-words-patch16-224",
)
EFFECTS = (-0.031, 0.002, 0.004, 0.012, -0.002, -0.014, 0.0, -0.022, -0.045, 0.034, 0.021)
DIMENSIONS = (16, 32, 64, 128)


def made_up_study(
    names: Sequence[str] = NAMES, *, num_seeds: int = 5, null: bool = True, points: int = 20
) -> StudyResult:
    """A study in which `NAMES` have `EFFECTS` on R@1 of 0.61; one seed shifts all variants alike."""
    variants = [Variant(BASE), *(Variant(name, tuple(name.split(", "))) for name in names)]
    variants += [Variant(NULL, seed_offset=1000)] if null else []
    seeds = tuple(range(num_seeds))
    keys = dict.fromkeys(override.partition("=")[0] for v in variants for override in v.overrides)
    switches = tuple(Switch(key, ("true", "false")) for key in keys)
    metrics = ("recall_at_1", "recall_at_5", "image_to_text_mean_rank")
    study = Study("base", ("trainer.epochs=3",), switches, seeds, metrics, null=null)
    effects = (0.0, *(EFFECTS[i % len(EFFECTS)] for i in range(len(names))), 0.0)
    rng = np.random.default_rng(0)
    of_seed = rng.normal(0, 0.008, num_seeds)
    runs = []
    for i, variant in enumerate(variants):
        for seed in seeds:
            shift = rng.normal(0, 0.008) if variant.name == NULL else of_seed[seed]
            score = 0.61 + effects[i] + shift + rng.normal(0, 0.006)
            runs.append(
                _run(RunResult(variant.name, seed, f"runs/{i:02d}{seed:02d}", "finished"), float(score), rng, points)
            )
    return StudyResult(study, tuple(variants), tuple(runs))


def _run(run: RunResult, score: float, rng: np.random.Generator, points: int) -> RunResult:
    figures = {"recall_at_1": score, "recall_at_5": score + 0.2, "image_to_text_mean_rank": 12 * (1 - score)}
    for place, dimension in enumerate(DIMENSIONS):
        figures[f"recall_at_1@{dimension}"] = score - 0.08 * (3 - place) ** 1.3 + float(rng.normal(0, 0.006))
    size = 1 + 0.15 * ("depth=12" in run.variant) - 0.2 * ("depth=3" in run.variant) + len(run.variant) % 5 / 30
    cost = Cost(
        parameters=int(12.3e6 * size),
        trainable_parameters=int(12.3e6 * size),
        flops_per_sample=1.7e9 * size**1.2,
        samples_per_second=410 / size + float(rng.normal(0, 9)),
        peak_memory_bytes=int(1.4e9 * size),
        training_seconds=81 * size + float(rng.normal(0, 1.5)),
    )
    steps = tuple(map(float, np.linspace(20, 400, points)))
    progress = np.linspace(0.05, 1, points)
    loss = 0.6 - score / 3 + 1.9 * np.exp(-4 * progress) + rng.normal(0, 0.02, points)
    recall = np.clip(score * (1 - np.exp(-4 * progress)) + rng.normal(0, 0.01, points), 0, 1)
    curves = {"val_loss": Curve(steps, tuple(map(float, loss))), "val_recall": Curve(steps, tuple(map(float, recall)))}
    return replace(run, figures=figures, cost=cost, curves=curves)


def with_failed(result: StudyResult, *places: int, reason: str = "TrainingError: the loss is nan") -> StudyResult:
    """The same study, but the runs at these places of it have failed."""
    runs = [
        RunResult(run.variant, run.seed, run.folder, "failed", reason) if place in places else run
        for place, run in enumerate(result.runs)
    ]
    return replace(result, runs=tuple(runs))
