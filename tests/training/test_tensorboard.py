"""What TensorBoard reads back of a run."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from impresa.evaluation.figures import figures
from impresa.evaluation.gallery import AnsweredQuestion, Gallery
from impresa.evaluation.results import Evaluation, read_evaluation
from impresa.training.logs import PACE, build_loggers
from impresa.training.run import train
from impresa.training.tensorboard import TensorBoardEvents, grouped, write_results
from tiny_run import tiny_experiment


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("train_loss", "train/loss"),
        ("val_image_to_text_recall_at_1", "val/image_to_text_recall_at_1"),
        ("lr", "train/lr"),
        ("gradient_norm", "train/gradient_norm"),
        ("value", "train/value"),
        ("val", "train/val"),
    ],
)
def test_metrics_are_grouped(name: str, shown: str) -> None:
    assert grouped(name) == shown


def test_a_run_has_curves_hyperparameters_results_pictures_and_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("impresa.training.finish.write_report", lambda _: None)  # matplotlib takes longer than all else
    config = tiny_experiment("trainer.logging.tensorboard=true", "trainer.epochs=1", "optimization.lr=0.0007")
    run = train(config, tmp_path / "run", command=["impresa", "train"])
    (folder,) = {path.parent for path in run.rglob("events.out.tfevents.*")}
    found = EventAccumulator(str(folder)).Reload()
    tags = found.Tags()
    assert {name.partition("/")[0] for name in tags["scalars"]} == {"train", "val", "test"}
    pace = {f"train/{name}" for name in PACE if name != "mfu"}  # the peak of a CPU is not known
    named = {"train/loss", "train/lr", "train/gradient_norm", "train/logit_scale", "val/loss", *pace}
    assert named <= set(tags["scalars"])
    assert found.Scalars("train/tokens_per_second")[-1].value > found.Scalars("train/samples_per_second")[-1].value
    stored = figures(read_evaluation(run))  # type: ignore[arg-type]
    measured = {name: found.Scalars(f"test/{name}") for name in stored}
    assert {name: points[-1].value for name, points in measured.items()} == pytest.approx(stored, rel=1e-5)
    assert {points[-1].step for points in measured.values()} == {found.Scalars("train/loss")[-1].step}

    gallery = read_evaluation(run).gallery  # type: ignore[union-attr]
    assert len(tags["images"]) == len(gallery.image_queries) + len(gallery.text_queries) > 6
    shown = Image.open(io.BytesIO(found.Images("test/example_1")[0].encoded_image_string))
    assert shown.width > 400
    assert shown.convert("L").getextrema()[0] < 100
    assert "test/example_1/text_summary" in tags["tensors"]
    text = found.Tensors("test/example_1/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.startswith("Right: ")
    assert "1. " in text
    start = HParamsPluginData.FromString(found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    values = start.session_start_info.hparams
    assert values["optimization.lr"].number_value == 0.0007
    assert values["vision_encoder.memory.enabled"].string_value == "true"
    assert json.loads(values["optimization.betas"].string_value) == list(config.optimization.betas)

    assert (run / "metrics.csv").read_text().startswith("step,epoch,train_loss,lr,val_loss")


def test_answers_are_texts_in_which_nothing_is_markup(tmp_path: Path) -> None:
    asked = AnsweredQuestion(None, "how *many*?", "two", "three", right=False)
    write_results(tmp_path, tiny_experiment(), Evaluation("x", 1, 1, 1, gallery=Gallery(questions=(asked,))), 7)
    (event,) = EventAccumulator(str(tmp_path)).Reload().Tensors("test/example_1/text_summary")
    assert event.step == 7
    assert event.tensor_proto.string_val[0].decode() == "how \\*many\\*?\n\n✗ three\n\nRight: two"


@pytest.mark.parametrize(
    ("project", "name", "folder"),
    [("p", "my/run", "p/my-run"), ("a/b", "null", "a-b/shapes"), ("..", ".x", "-/x")],
)
def test_tensorboard_lies_under_the_project_and_the_name(tmp_path: Path, project: str, name: str, folder: str) -> None:
    settings = (f"trainer.logging.project={project}", f"trainer.logging.name={name}")
    _, board = build_loggers(tiny_experiment("trainer.logging.tensorboard=true", *settings), tmp_path, 0)
    board.log(1, {"train_loss": 1.0})
    board.close(success=True)
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    assert file.parent == tmp_path / "events" / folder


@pytest.mark.parametrize("goes_on", [True, False], ids=["a run that goes on", "a run that had nothing left to log"])
def test_tensorboard_shows_no_step_twice_after_a_crash(tmp_path: Path, goes_on: bool) -> None:
    for start, end in ((0, 7), (4, 9 if goes_on else 4)):  # a checkpoint at 4, a crash after 7
        time.sleep(1.1)  # files of one second are read in the order of a counter as text, 10 before 9
        board = TensorBoardEvents(tmp_path / "run", start)
        for step in range(start + 1, end + 1):
            board.log(step, {"train_loss": float(step), "part": start})
        board.close(success=True)
    shown = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [point.step for point in shown.Scalars("train/loss")] == list(range(1, 10 if goes_on else 5))
    assert [point.value for point in shown.Scalars("train/part")] == [0] * 4 + [4] * (5 if goes_on else 0)
