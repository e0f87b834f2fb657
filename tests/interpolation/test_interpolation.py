"""Weights between a pretrained pair and its fine-tuning: the line, the choice, and the run that is written."""

from __future__ import annotations

import argparse
import csv
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import tiny_hub
from impresa.cli.interpolate import alphas_of
from impresa.cli.main import main
from impresa.config.decoder import TowerLoraConfig
from impresa.data.preprocessing import prepare_tokenizer
from impresa.evaluation.results import read_evaluation
from impresa.interpolation.curve import Point, choose
from impresa.interpolation.weights import line_between, merged, without_adapters
from impresa.run_dir.load import load_embedder
from impresa.tasks.alignment.task import AlignmentTask
from impresa.tasks.alignment.untrained import untrained
from impresa.training.run import train
from pictures import photo
from tiny_pair import pair_experiment
from tiny_run import finished_run, without_charts
from tiny_vlm import finished_vlm


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hub.clip(tmp_path_factory.mktemp("hub") / "clip")


@pytest.fixture(scope="module")
def after(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        without_charts(patch)
        return train(pair_experiment(clip, 20), tmp_path_factory.mktemp("runs") / "after", command=[])


@pytest.fixture(autouse=True)
def _without_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impresa.interpolation.write.write_report", lambda run_dir: run_dir / "report.html")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Six pictures of two classes."""
    folder = tmp_path / "old"
    folder.mkdir()
    rows = []
    for number in range(6):
        photo(40 + number, 32).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "label": "red circle" if number % 2 else "blue square"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_lists_of_alphas() -> None:
    assert alphas_of("0,0.1,...,1") == pytest.approx([number / 10 for number in range(11)])
    assert alphas_of("0.5") == [0, 0.5, 1]
    assert alphas_of("0.3, 0.2,0.2") == [0, 0.2, 0.3, 1]
    for text in (
        "",
        "0,2",
        "-1",
        "a",
        "0,...,1",
        "0,0.1,...",
        "0,0,...,1",
        "nan",
        "1,0.9,...,0",
        "0,0.0001,...,1",
        "...",
    ):
        with pytest.raises(argparse.ArgumentTypeError, match="is no list of numbers from 0 to 1"):
            alphas_of(text)


def test_the_best_that_keeps_enough_is_chosen_and_of_equals_the_nearest_to_the_start() -> None:
    points = [
        Point(0, 0.2, 0.8),
        Point(0.3, 0.6, 0.79),
        Point(0.5, 0.6, 0.76),
        Point(0.8, 0.7, 0.75),
        Point(1, 0.9, 0.1),
    ]
    assert choose(points, 0.95).alpha == 0.3
    assert choose(points, 0.9).alpha == 0.8
    assert choose(points, 0).alpha == 1
    assert choose([replace(point, old=None) for point in points], 0.95).alpha == 1
    assert choose([Point(0, 0.5, 0.5), Point(1, 0.4, 0.9)], 0.95).alpha == 0


def test_merged_adapters_are_the_model(clip: Path) -> None:
    config = pair_experiment(clip, 20, lora=TowerLoraConfig(r=2, alpha=8))
    task = AlignmentTask(config)
    tokenizer = prepare_tokenizer(config, ())
    model = task.blank(tokenizer).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    plain = AlignmentTask(without_adapters(config)).blank(tokenizer).eval()
    plain.load_state_dict(merged(model.state_dict(), config))
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(plain.embed_image(image), model.embed_image(image), rtol=1e-4, atol=1e-4)


def test_the_line_is_exact_at_its_ends_and_linear_between() -> None:
    scale = {"loss.logit_scale": torch.tensor(2.0)}
    before = {"w": torch.randn(5, 7), "count": torch.tensor(3), **scale}
    after = {"w": torch.randn(5, 7), "count": torch.tensor(9), "loss.logit_scale": torch.tensor(3.0)}
    line = line_between(before, after, torch.nn.Identity(), ("a", "b"))
    assert torch.equal(line.at(0)["w"], before["w"])
    assert torch.equal(line.at(1)["w"], after["w"])
    torch.testing.assert_close(line.at(0.3)["w"], 0.7 * before["w"] + 0.3 * after["w"])
    assert line.at(0.3)["count"] == 9
    assert line.note == (
        "2 tensors are interpolated in float32; 1 of whole numbers are those at the end; "
        "the logit scale goes from 7.389 to 20.09 by its logarithm and ranks nothing"
    )


def test_a_mixture_is_measured_drawn_and_written_as_a_run(
    clip: Path, after: Path, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep/mixed"
    words = ["--alpha", "0,0.5,...,1", "--old-data", str(old), "--out", str(out), "--keep", "0", "--device", "cpu"]
    assert main(["interpolate", str(clip), str(after), *words]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == str(out)
    assert "tensors are interpolated in float32" in shown.err
    stored = json.loads((out / "interpolation.json").read_text())
    assert stored["new"]["metric"] == "recall_at_1"
    assert stored["old"] == {"data": str(old), "metric": "zero_shot_accuracy"}
    assert [point["alpha"] for point in stored["points"]] == [0, 0.5, 1]
    alpha = stored["chosen"]["alpha"]
    assert f"alpha {alpha:g} is the best R@1 on shapes, val split that keeps 0% of zero-shot accuracy on" in shown.out
    rows = list(csv.DictReader((out / "interpolation.csv").open()))
    assert [float(row["alpha"]) for row in rows if row["chosen"] == "1"] == [alpha]
    assert Image.open(out / "interpolation.png").format == "PNG"
    model, end = load_embedder(out, "cpu"), load_embedder(after, "cpu")
    start = untrained(end.config, "cpu").model.state_dict()
    for name, tensor in model.model.state_dict().items():
        expected = torch.lerp(start[name].float(), end.model.state_dict()[name].float(), alpha)
        assert torch.equal(tensor.float(), expected), name
    evaluation, theirs = read_evaluation(out), read_evaluation(after)
    assert evaluation is not None
    assert theirs is not None
    assert evaluation.before == pytest.approx(theirs.before)
    assert stored["tested"]["0"] == pytest.approx(theirs.before["recall_at_1"])
    card = (out / "README.md").read_text()
    assert f"Weights at alpha {alpha:g} on the line from" in card
    assert "training it again" not in card
    assert main(["interpolate", str(clip), str(after), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"--out: {out} is there already; name a new or an empty folder\n"


def test_a_config_with_its_keys_and_a_run_are_starts_too(
    clip: Path, after: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = [
        f"{part}.{key}" for part in ("vision_encoder", "text_encoder") for key in (f"backbone={clip}", "embed_dim=20")
    ]
    points = []
    for before in (["clip", str(after), *keys], [str(after), str(after)]):
        assert main(["interpolate", *before, "--alpha", "0", "--device", "cpu", "--json"]) == 0
        points.append(json.loads(capsys.readouterr().out)["points"])
    assert len({point["new"] for point in (points[0][1], *points[1])}) == 1
    assert [path.name for path in (tmp_path / "interpolations").glob("*/*/*.png")] == ["interpolation.png"] * 2


@pytest.fixture
def no_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was trained in this process shows notices on standard error from then on, as no command does."""
    monkeypatch.setattr(logging.getLogger("impresa"), "handlers", [])


@pytest.mark.usefixtures("no_notices")
@pytest.mark.parametrize("kind", ["width", "family", "answers", "both", "keys", "nothing"])
def test_refusals_are_one_line(
    clip: Path, after: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, line = {
        "width": lambda: ([str(finished_run()), str(after)], "reads texts by another tokenizer than"),
        "family": lambda: (
            [str(tiny_hub.siglip(tmp_path / "siglip")), str(after)],
            "name the model that it was fine-tuned",
        ),
        "answers": lambda: ([str(clip), str(finished_vlm())], "answers questions and embeds nothing"),
        "both": lambda: ([str(finished_vlm()), str(after)], "answers questions and embeds nothing"),
        "keys": lambda: ([str(clip), str(after), "dataset.label_column=name"], "is for --old-data; name them"),
        "nothing": lambda: ([str(tmp_path / "none"), str(after)], "there is no such folder"),
    }[kind]()
    capsys.readouterr()
    assert main(["interpolate", *words, "--device", "cpu", "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert line in shown.err
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
