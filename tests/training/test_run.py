"""Whole training runs of the tiny experiment."""

from __future__ import annotations

import gc
import hashlib
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import impresa
from impresa.config import read_config
from impresa.data.sources import open_source
from impresa.errors import CheckpointError, ConfigError, TrainingError
from impresa.evaluation.results import read_evaluation
from impresa.evaluation.retrieval import retrieval_metrics
from impresa.reports.html import render_report
from impresa.run_dir.environment import is_finished, read_environment
from impresa.training import finish as finish_module
from impresa.training.run import train
from impresa.training.state import TrainState, WeightAverage
from run_metrics import interrupt_after, rows
from tiny_run import HEARING, STEPS_PER_EPOCH, finished_run, tiny_experiment, without_charts

COMMAND = ["impresa", "train", "shapes"]
TOTAL = 3 * STEPS_PER_EPOCH


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    without_charts(monkeypatch)


def same(a: Any, b: Any) -> bool:
    """Equality of checkpoints to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_a_run_directory_has_everything() -> None:
    names = {path.name for path in finished_run().iterdir()}
    assert names >= {
        *("config.yaml", "environment.json", "model.safetensors", "tokenizer", "preprocessing.json"),
        *("golden.safetensors", "manifest.json", "checkpoints", "metrics.csv", "evaluation.json", "report.html"),
        "README.md",
    }
    assert not [name for name in names if name.endswith(".tmp")]


def test_its_config_fed_back_is_the_same_experiment() -> None:
    assert read_config(finished_run() / "config.yaml") == tiny_experiment()


def test_its_environment_tells_how_it_was_made() -> None:
    environment = json.loads((finished_run() / "environment.json").read_text())
    assert environment["command"] == COMMAND
    assert environment["seed"] == 0
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["started"] <= environment["finished"]
    assert environment["git"] is None or len(environment["git"]["commit"]) == 40


def test_metrics_have_their_steps() -> None:
    found = rows(finished_run())
    assert list(found[0])[:5] == ["step", "epoch", "train_loss", "lr", "val_loss"]
    assert [int(row["step"]) for row in found if row["train_loss"]] == list(range(1, TOTAL + 1))
    validated = [(int(row["step"]), int(row["epoch"])) for row in found if row["val_loss"]]
    assert validated == [(3, 0), (6, 1), (9, 2)]
    assert float(found[-1]["val_image_to_text_recall_at_1"]) >= 0
    # One epoch of warm-up, then down to the minimum.
    rates = [float(row["lr"]) for row in found if row["lr"]]
    assert rates[:3] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])
    assert rates[-1] == pytest.approx(1e-6)


def test_the_model_has_the_weights_of_the_best_checkpoint() -> None:
    by_loss = {row["val_loss"]: int(row["step"]) for row in rows(finished_run()) if row["val_loss"]}
    best = by_loss[min(by_loss, key=float)]
    checkpoints = (finished_run() / "checkpoints").glob(f"*{best}.ckpt")
    state = torch.load(next(checkpoints), weights_only=True)["model"]
    weights = impresa.load(finished_run(), "cpu").model.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], state[name]) for name in weights)


def test_a_loaded_model_gives_the_embeddings_that_the_evaluation_saw() -> None:
    model, evaluation = impresa.load(finished_run(), "cpu"), read_evaluation(finished_run())
    source = open_source(model.config.dataset, "test")
    samples = [source[i] for i in range(len(source))]
    captions = [caption for sample in samples for caption in sample.captions]
    images = model.encode_image([sample.image for sample in samples if sample.image is not None])
    owners = torch.tensor([i for i, sample in enumerate(samples) for _ in sample.captions])
    assert evaluation is not None
    assert retrieval_metrics(images, model.encode_text(captions), owners, captions) == evaluation.retrieval


def test_the_model_card_says_what_how_and_how_well() -> None:
    card = (finished_run() / "README.md").read_text()
    parts = ("# shapes", "impresa.load(", "| **image → text** |", "| chance |", "impresa train shapes", "Seed: 0")
    assert [part for part in parts if part not in card] == []


def test_the_same_seed_gives_the_same_model_and_another_seed_another(tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()

    again = train(tiny_experiment(), tmp_path / "again", command=COMMAND)
    other = train(tiny_experiment("seed=1"), tmp_path / "other", command=COMMAND)
    assert digest(again) == digest(finished_run())
    assert digest(other) != digest(finished_run())


@pytest.mark.parametrize(
    "step", [pytest.param(5, id="within an epoch"), pytest.param(6, id="where a validation is due")]
)
def test_a_resumed_run_equals_a_straight_one_to_the_bit(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(step, patch)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_experiment(), tmp_path / "run", command=COMMAND)
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["step"] == step
    assert not (tmp_path / "run" / "manifest.json").exists()
    torch.manual_seed(1234)  # nothing may depend on it
    train(tiny_experiment(), tmp_path / "run", command=COMMAND, resume=True)
    folders = (tmp_path / "run", finished_run())
    resumed, straight = (torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in folders)
    costs = [checkpoint.pop("cost") for checkpoint in (resumed, straight)]
    assert same(resumed, straight)
    assert all(cost["samples"] == costs[0]["samples"] > 0 for cost in costs)
    assert all(cost["seconds"] > cost["step_seconds"] > 0 for cost in costs)
    assert rows(tmp_path / "run") == rows(finished_run())
    assert [resumed["step"] for resumed in read_environment(tmp_path / "run")["resumed"]] == [step]
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (finished_run() / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(["optimization.ema_decay=0.6"], id="the average of the weights"),
        pytest.param(
            ["vision_encoder.patch_dropout=0.5", *HEARING, "dataset.audio_augmentation=strong"],
            id="what is drawn",
        ),
    ],
)
def test_a_resumed_run_goes_on_with(settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_experiment(*settings)
    straight = train(config, tmp_path / "straight", command=COMMAND)
    with monkeypatch.context() as patch:
        interrupt_after(5, patch)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run", command=COMMAND)
    train(config, tmp_path / "run", command=COMMAND, resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
    assert rows(tmp_path / "run") == rows(straight)


def test_a_run_that_died_in_its_evaluation_is_finished_by_resuming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("impresa.tasks.alignment.evaluate.evaluate", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tiny_experiment(), tmp_path / "run", command=COMMAND)
    train(tiny_experiment(), tmp_path / "run", command=COMMAND, resume=True)
    assert is_finished(tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (finished_run() / "model.safetensors").read_bytes()


def test_the_evaluation_has_the_memory_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[dict[str, Any]] = []
    alive: list[Any] = []
    real_save, real_load = finish_module.save_run, finish_module.load

    def save(run_dir: Path, model: Any, *rest: Any, **settings: Any) -> None:
        saved.append({"model": weakref.ref(model), "device": settings["device"]})
        real_save(run_dir, model, *rest, **settings)

    def of_training() -> list[Any]:
        gc.collect()
        kinds = (TrainState, WeightAverage, torch.optim.Optimizer)
        return [thing for thing in gc.get_objects() if issubclass(type(thing), kinds)]

    before = of_training()  # what other tests hold

    def load(*given: Any) -> Any:
        alive.extend(thing for thing in of_training() if not any(thing is other for other in before))
        alive.extend(filter(None, [saved[0]["model"]()]))
        return real_load(*given)

    monkeypatch.setattr(finish_module, "save_run", save)
    monkeypatch.setattr(finish_module, "load", load)
    train(tiny_experiment("optimization.ema_decay=0.6", "trainer.max_steps=1"), tmp_path / "run", command=COMMAND)
    assert alive == []
    assert saved[0]["device"] == torch.device("cpu")  # where it was trained


def test_captions_that_are_cut_are_said_at_the_start_and_in_the_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    train(tiny_experiment("text_encoder.max_len=4", "trainer.max_steps=1"), tmp_path / "run", command=["impresa"])
    said = "100% of captions are longer than text_encoder.max_len (4 tokens), their ends are cut"
    assert caplog.messages.count(said) == 1
    assert render_report(tmp_path / "run").count(said) == 1


def test_resuming_a_finished_run_says_so(caplog: pytest.LogCaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run().rglob("*")}
    assert train(tiny_experiment(), finished_run(), command=COMMAND, resume=True) == finished_run()
    assert "this run has finished" in caplog.text
    assert before == {path: path.stat().st_mtime_ns for path in finished_run().rglob("*")}


def test_an_unknown_metric_is_refused_before_the_first_step(tmp_path: Path) -> None:
    config = tiny_experiment("trainer.checkpoint.monitor=val_accuracy")
    with pytest.raises(ConfigError, match=r"trainer\.checkpoint\.monitor .*'val_accuracy'; there are .*val_loss"):
        train(config, tmp_path / "run", command=COMMAND)
    assert not (tmp_path / "run" / "metrics.csv").exists()
    # The folder has no checkpoint, so the fixed command may use it again.
    train(tiny_experiment("trainer.max_steps=1"), tmp_path / "run", command=COMMAND)


def test_a_diverged_run_keeps_its_last_checkpoint_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_experiment("optimization.optimizer=sgd", "optimization.lr=1e30", "optimization.clip_grad=0")
    with pytest.raises(TrainingError, match=r"step \d: the (loss|gradient) is .*lower optimization\.lr"):
        train(config, tmp_path / "run", command=COMMAND)
    with pytest.raises(CheckpointError, match="has not finished"):
        impresa.load(tmp_path / "run")


def test_without_checkpoints_the_final_weights_are_the_model(tmp_path: Path) -> None:
    config = tiny_experiment("trainer.checkpoint.save_top_k=0", "trainer.checkpoint.save_last=false")
    run_dir = train(config, tmp_path / "run", command=COMMAND)
    assert not list(run_dir.rglob("*.ckpt"))
    final = torch.load(finished_run() / "checkpoints" / "last.ckpt", weights_only=True)["model"]
    weights = impresa.load(run_dir, "cpu").model.state_dict()
    assert all(torch.equal(weights[name], final[name]) for name in weights)


def test_bfloat16_and_a_missing_gpu(tmp_path: Path) -> None:
    run_dir = train(
        tiny_experiment("optimization.precision=bf16-mixed", "trainer.max_steps=1"), tmp_path / "bf16", command=COMMAND
    )
    assert impresa.load(run_dir, "cpu").encode_text("a red circle").dtype == torch.float32
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"trainer\.accelerator: accelerator gpu"):
            train(tiny_experiment("trainer.accelerator=gpu"), tmp_path / "gpu", command=COMMAND)
