"""The tables of the terminal and the picture of the README."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from fake_model import ColourModel, colour_source
from impresa.data.sources.base import BadSample
from impresa.errors import CheckpointError
from impresa.evaluation.results import Evaluation, save_evaluation
from impresa.reports.figure import main, write_figure
from impresa.reports.terminal import print_results
from impresa.tasks.alignment.evaluate import evaluate


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    source = colour_source(24, labels=True)
    source.items[2] = BadSample("bad [red]one[/red]", "[no] pixels")
    return evaluate(ColourModel(), source, data="squares", train_source=source)


def shown(evaluation: Evaluation) -> str:
    stream = io.StringIO()
    print_results(evaluation, Console(file=stream, width=80))
    return stream.getvalue()


def test_table_shows_model_and_baselines_in_both_directions(evaluation: Evaluation) -> None:
    lines = [line.split() for line in shown(evaluation).splitlines()]
    for direction in ("image_to_text", "text_to_image"):
        metrics = getattr(evaluation.retrieval, direction)
        row = ["model", *(f"{metrics.recall_at[k]:.1%}" for k in (1, 5, 10))]
        assert [*row, f"{metrics.median_rank:g}", f"{metrics.mean_rank:.1f}"] in [line[:6] for line in lines]
    of_retrieval = [" ".join(line[:-5]) for line in lines if len(line) > 5]
    assert of_retrieval.count("chance") == of_retrieval.count("colour histogram") == 2
    text = shown(evaluation)
    assert "zero-shot accuracy" in text
    assert [["model", "100.0%"], ["chance", f"{1 / 6:.1%}"]] == [
        line for line in lines if len(line) == 2 and "%" in line[1]
    ]
    assert "23 of 23 images are named right; 6 classes" in text
    assert "bad samples, skipped: 1; the first is bad [red]one[/red]: [no] pixels" in text


def test_table_without_retrieval(evaluation: Evaluation) -> None:
    text = shown(replace(evaluation, retrieval=None, bad_samples=()))
    assert "R@1" not in text
    assert "bad samples" not in text
    assert "zero-shot" in text


def test_figure_is_drawn_for_an_evaluated_run(tmp_path: Path, evaluation: Evaluation) -> None:
    save_evaluation(evaluation, tmp_path)
    without_curve = write_figure(tmp_path, tmp_path / "a.png").read_bytes()
    (tmp_path / "metrics.csv").write_text("step,train_loss,val_loss\n1,5,\n9,2,3\n")
    assert main([str(tmp_path), str(tmp_path / "docs" / "b.png")]) == 0
    assert (tmp_path / "docs" / "b.png").read_bytes() != without_curve
    with Image.open(tmp_path / "docs" / "b.png") as picture:
        assert picture.size == (1800, 990)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert {(21, 128, 61), (194, 51, 61)} <= colours  # frames of right and wrong answers


def test_figure_needs_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match="no retrieval examples"):
        write_figure(tmp_path, tmp_path / "out.png")
    assert main([str(tmp_path), str(tmp_path / "out.png")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out.png").exists()
