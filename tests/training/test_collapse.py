from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch

from impresa.losses.kinds import KINDS
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.collapse import STEPS_AFTER_WARMUP, CollapseWatch
from impresa.training.run import train
from tiny_run import tiny_experiment, without_charts

WARMUP, SIZE = 10, 8
GATHERED = "losses.gather_distributed=true"


def watch(contrastive: float, mean_cosine: float, steps: int = WARMUP + STEPS_AFTER_WARMUP) -> CollapseWatch:
    found = CollapseWatch(tiny_experiment(), WARMUP)
    logs = {"contrastive": torch.tensor(contrastive), "mean_cosine": torch.tensor(mean_cosine)}
    for step in range(1, steps + 1):
        found.after_step(step, [Batch(ids=["x"] * SIZE)], logs)
    return found


def test_a_loss_at_guessing_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        watch(math.log(SIZE) + 0.015, 0.5, steps=500)
    assert len(caplog.records) == 1
    assert f"step {WARMUP + STEPS_AFTER_WARMUP}: the loss is that of guessing" in caplog.text
    assert "optimization.lr" in caplog.text


def test_nearly_equal_embeddings_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        watch(1.0, 0.9995)
    assert "nearly the same embedding" in caplog.text


@pytest.mark.parametrize(
    ("contrastive", "cosine", "steps"),
    [
        pytest.param(math.log(SIZE) - 0.03, 0.9, 500, id="it learns"),
        pytest.param(math.log(SIZE), 1.0, WARMUP + STEPS_AFTER_WARMUP - 1, id="too early to tell"),
    ],
)
def test_it_is_silent_when(contrastive: float, cosine: float, steps: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        watch(contrastive, cosine, steps)
    assert not caplog.records


def test_a_pair_of_modalities_that_no_batch_has_twice_is_named(caplog: pytest.LogCaptureFixture) -> None:
    heard = torch.zeros(SIZE, dtype=torch.bool)
    heard[0] = True
    batch = Batch(ids=["x"] * SIZE, audio_present=heard, text_present=torch.ones(SIZE, dtype=torch.bool))
    logs = {"contrastive": torch.tensor(1.0), "mean_cosine": torch.tensor(0.5)}
    for more, num_processes, named in (
        (("audio_encoder.dim=16", "audio_encoder.num_heads=2", "audio_encoder.embed_dim=16"), 1, 2),
        (("audio_encoder.dim=16", "audio_encoder.num_heads=2", "audio_encoder.embed_dim=16", GATHERED), 2, 0),
        ((), 1, 0),
    ):
        caplog.clear()
        found = CollapseWatch(tiny_experiment(*more), WARMUP, num_processes)
        for step in range(1, 40):
            found.after_step(step, [batch], logs)
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == named
        assert all("had two samples with image-audio" in one or "with text-audio" in one for one in lines)


def test_guessing_costs_one_more_under_siglip() -> None:
    assert KINDS["clip"].loss_at_chance(128) == pytest.approx(4.852, abs=1e-3)
    assert KINDS["siglip"].loss_at_chance(128) == pytest.approx(5.852, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        (("optimization.lr=3",), "the loss is that of guessing"),
        (("optimization.lr=3", "losses.type=siglip", "optimization.lr_logits=0.01"), "nearly the same embedding"),
    ],
    ids=["clip", "siglip"],
)
def test_a_training_that_is_stuck_is_told(
    settings: tuple[str, ...],
    seen: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    without_charts(monkeypatch)
    steps = ("trainer.epochs=10", "trainer.accumulate_grad_batches=1")  # five of them an epoch
    config = tiny_experiment(*settings, *steps, "optimization.warmup_epochs=0")
    train(config, tmp_path / "run", command=[])
    assert f"step {STEPS_AFTER_WARMUP}: " in caplog.text
    assert seen in caplog.text
    assert "lower optimization.lr (3)" in caplog.text
