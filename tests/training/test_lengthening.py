"""A run that is made longer, or shorter, when it is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import impresa
from impresa.errors import CheckpointError, ConfigError
from impresa.evaluation.results import read_evaluation
from impresa.run_dir.environment import is_finished, read_environment
from impresa.training.plan import make_plan
from impresa.training.run import train
from impresa.training.schedule import make_schedule
from run_metrics import interrupt_after, numbers
from tiny_run import STEPS_PER_EPOCH, copy_of_run, finished_run, tiny_experiment, without_charts

COMMAND = ["impresa", "train", "shapes"]
EVERY = "trainer.logging.log_interval=1"


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    without_charts(monkeypatch)


def interrupted(run_dir: Path, step: int, monkeypatch: pytest.MonkeyPatch, *overrides: str, **settings: Any) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(step, patch)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_experiment(*overrides), run_dir, command=COMMAND, **settings)


def resume(run_dir: Path, *overrides: str) -> Path:
    return train(tiny_experiment(*overrides), run_dir, command=COMMAND, resume=True)


def rates(run_dir: Path) -> list[float]:
    return [row["lr"] for row in numbers(run_dir, "lr") if row]


def rates_of(epochs: int, warmup_steps: int | None = None) -> list[float]:
    """Learning rates of a whole run."""
    config = tiny_experiment(f"trainer.epochs={epochs}")
    plan = make_plan(config.trainer, 5)
    schedule = make_schedule(config.optimization, plan, warmup_steps)
    return [schedule.learning_rate(step, config.optimization.lr) for step in range(1, plan.total_steps + 1)]


def test_a_finished_run_goes_on_with_the_schedule_of_the_longer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = train(tiny_experiment(EVERY), tmp_path / "run", command=COMMAND)
    weights = (run_dir / "model.safetensors").read_bytes()
    # Killed on its way, and resumed by the run's own config.
    interrupted(run_dir, 11, monkeypatch, EVERY, "trainer.epochs=5", resume=True)
    assert not is_finished(run_dir)
    assert (run_dir / "model.safetensors").read_bytes() == weights  # of use until the new one is there
    resume(run_dir, EVERY, "trainer.epochs=5")
    assert rates(run_dir) == pytest.approx(rates_of(3) + rates_of(5)[9:])
    said = [record.message for record in caplog.records if "goes on after" in record.message]
    assert said == [
        "the run goes on after step 9 to step 15, with the learning rates that a run of this length has from here on; "
        "it was to end at step 9"
    ]
    assert is_finished(run_dir)
    assert [part["step"] for part in read_environment(run_dir)["resumed"]] == [9, 11]
    assert (run_dir / "model.safetensors").read_bytes() != weights
    assert impresa.load(run_dir, "cpu").config.trainer.epochs == 5
    assert read_evaluation(run_dir) != read_evaluation(finished_run())


def test_it_equals_one_that_was_not_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight, killed = copy_of_run(tmp_path / "straight"), copy_of_run(tmp_path / "killed")
    resume(straight, "trainer.epochs=4")
    interrupted(killed, 10, monkeypatch, "trainer.epochs=4", resume=True)
    resume(killed, "trainer.epochs=4")
    assert (killed / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()


def test_a_stopped_run_is_made_longer_or_shorter_and_its_warm_up_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warmup = "optimization.warmup_epochs=9"  # cut to none in a run of nine steps
    interrupted(tmp_path / "run", 4, monkeypatch, EVERY, warmup)
    resume(tmp_path / "run", EVERY, warmup, "trainer.epochs=4")
    assert rates(tmp_path / "run") == pytest.approx(rates_of(3, 0)[:4] + rates_of(4, 0)[4:])
    interrupted(tmp_path / "short", 4, monkeypatch, EVERY)
    resume(tmp_path / "short", EVERY, "trainer.epochs=2")
    assert rates(tmp_path / "short") == pytest.approx(rates_of(3)[:4] + rates_of(2)[4:])
    assert is_finished(tmp_path / "short")


def test_a_run_can_end_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path / "run", 4, monkeypatch)
    resume(tmp_path / "run", "trainer.max_steps=4")
    assert is_finished(tmp_path / "run")
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["step"] == 4


def test_another_length_that_ends_at_the_same_step_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    resume(copy_of_run(tmp_path / "run"), "trainer.max_steps=50")
    assert "there are no steps to make: the run ends at step 9, as before" in caplog.messages
    resume(tmp_path / "run", "trainer.max_steps=50", "trainer.early_stopping_patience=3")
    resume(tmp_path / "run", "trainer.max_steps=50", "trainer.early_stopping_patience=3")
    assert "(a larger trainer.epochs or early_stopping_patience trains on)" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("trainer.epochs=2", r"^trainer\.epochs \(training\.epochs\): 2 ends the run at step 6, .*made 9 already"),
        ("trainer.max_steps=5", r"^trainer\.max_steps: 5 ends the run at step 5, and it has made 9 already"),
        ("dataset.batch_size=5", r"^dataset\.batch_size: was 4 and is 5; a resumed run keeps its config"),
        ("vision_encoder.dim=32", r"^vision_encoder\.dim: was 16 and is 32"),
        ("trainer.checkpoint.monitor=val_perplexity", r"^trainer\.checkpoint\.monitor: was val_loss"),
    ],
)
def test_what_cannot_change_is_refused_by_name_and_nothing_is_touched(override: str, line: str) -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in finished_run().rglob("*")}

    before = state()
    with pytest.raises(ConfigError, match=line) as caught:
        resume(finished_run(), override)
    assert len(caught.value.lines) == 1
    assert state() == before


def test_a_finished_run_that_kept_no_checkpoint_cannot_go_on(tmp_path: Path) -> None:
    nothing = ("trainer.checkpoint.save_top_k=0", "trainer.checkpoint.save_last=false")
    run_dir = train(tiny_experiment("trainer.max_steps=1", *nothing), tmp_path / "run", command=COMMAND)
    with pytest.raises(CheckpointError, match="has no checkpoint to go on from"):
        resume(run_dir, "trainer.max_steps=2", *nothing)
    assert impresa.load(run_dir, "cpu")


def test_a_crash_of_a_run_that_keeps_no_last_is_resumed_and_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ("trainer.checkpoint.save_top_k=0", "trainer.checkpoint.save_last=false", EVERY)
    config += (f"trainer.logging.save_interval={STEPS_PER_EPOCH - 1}",)
    with monkeypatch.context() as patch:
        patch.setattr("impresa.training.loop.train_step", _fails_after(5))
        with pytest.raises(ZeroDivisionError):
            train(tiny_experiment(*config), tmp_path / "run", command=COMMAND)
    resume(tmp_path / "run", *config)
    assert [part["step"] for part in read_environment(tmp_path / "run")["resumed"]] == [4]
    assert not list((tmp_path / "run").rglob("*.ckpt"))
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert [int(row["step"]) for row in numbers(tmp_path / "run", "step", "lr") if "lr" in row] == list(range(1, 10))


def _fails_after(step: int) -> Any:
    from impresa.training.loop import train_step

    return lambda training, batches: 1 / 0 if training.state.step == step else train_step(training, batches)
