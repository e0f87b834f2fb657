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
        bounds = evaluation.intervals["model"][f"{direction}_recall_at_1"]
        first = [f"{metrics.recall_at[1]:.1%}", f"({bounds.low * 100:.1f}", "to", f"{bounds.high * 100:.1f})"]
        assert ["model", *first, *(f"{metrics.recall_at[k]:.1%}" for k in (5, 10))] in lines
        ranks = [f"{metrics.mrr:.3f}", f"{metrics.mean_average_precision:.3f}", f"{metrics.ndcg:.3f}"]
        assert ["model", *ranks, f"{metrics.median_rank:g}", f"{metrics.mean_rank:.1f}"] in lines
    text = shown(evaluation)
    assert text.count("  chance ") == text.count("  colour histogram ") == text.count("  ridge baseline ") == 4
    assert max(len(line) for line in text.splitlines()[:-5] if "Fitted on" not in line) <= 80
    assert "…" not in text
    assert "zero-shot accuracy" in text
    least = 100 * 0.025 ** (1 / 23)
    assert ["model", "100.0%", f"({least:.1f}", "to", "100.0)"] in lines
    assert ["chance", f"{1 / 6:.1%}"] in lines
    assert "23 of 23 images are named right; 6 classes" in text
    assert "bad samples, skipped: 1; the first is bad [red]one[/red]: [no] pixels" in text


def test_table_without_retrieval(evaluation: Evaluation) -> None:
    text = shown(replace(evaluation, retrieval=None, bad_samples=()))
    assert "R@1" not in text
    assert "bad samples" not in text
    assert "zero-shot" in text
