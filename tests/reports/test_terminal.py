"""The tables of the terminal."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from fake_model import ColourModel, colour_source
from impresa.data.sources.base import BadSample
from impresa.evaluation.results import Evaluation
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
