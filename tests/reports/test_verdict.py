"""What is said of a model that finds no more than a baseline, and with which reasons; of a better one nothing."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fake_model import ColourModel, colour_source
from impresa.evaluation.bootstrap import Interval
from impresa.evaluation.results import HISTOGRAM, RIDGE, Evaluation, Margin, read_evaluation, save_evaluation
from impresa.reports.card import model_card
from impresa.reports.charts import Curve
from impresa.reports.html import render_report
from impresa.reports.tables import warnings
from impresa.reports.terminal import print_results
from impresa.reports.verdict import likely_reasons, with_reasons
from impresa.run_dir.layout import METRICS
from impresa.tasks.alignment.evaluate import evaluate
from tiny_run import tiny_experiment

LESS = Margin(0.2, 0.5, Interval(-0.4, -0.2))
EVEN = Margin(0.45, 0.5, Interval(-0.2, 0.1))
MORE = Margin(0.6, 0.5, Interval(-0.1, 0.3))
PERFECT = Margin(1.0, 1.0, Interval(-0.1, 0.1))


def judged(**margins: Margin) -> Evaluation:
    names = {"histogram": HISTOGRAM, "ridge": RIDGE}
    return Evaluation("squares", 12, 12, 12, margins={names[name]: margin for name, margin in margins.items()})


def test_a_model_that_finds_less_is_told_with_the_margin() -> None:
    (line,) = warnings(judged(histogram=LESS, ridge=MORE))
    assert line == (
        "The model finds less than a colour histogram does: "
        "MRR 0.200 against 0.500 (-0.300, 95% interval -0.400 to -0.200 over the images)."
    )
    (line,) = warnings(judged(histogram=EVEN, ridge=LESS))
    assert "finds no more than a colour histogram does: MRR 0.450 against 0.500 (-0.050" in line
    assert "finds less than the ridge baseline does" in line


@pytest.mark.parametrize("margin", [MORE, PERFECT])
def test_nothing_is_said_of_one_that_finds_more_or_everything(margin: Margin) -> None:
    assert warnings(judged(histogram=margin, ridge=margin)) == []
    assert warnings(Evaluation("of an older version", 12, 12, 12)) == []


def falling(*values: float, step: int = 100) -> Mapping[str, Curve]:
    return {"val_loss": Curve(tuple(step * (place + 1) for place in range(len(values))), values)}


SMALL = ("dataset.image_size=16",)
FINE = Evaluation("squares", 12, 12, 12, num_train=50_000, image_side_px=20)


@pytest.mark.parametrize(
    ("evaluation", "history", "expected"),
    [
        (FINE, falling(3.0, 2.0, step=20), ["40 steps of training are few (trainer.epochs)"]),
        (FINE, falling(3.0, 2.0, 1.0, step=400), ["val_loss was still getting better at the end (trainer.epochs)"]),
        (FINE, falling(2.0, 3.0, 3.5, step=400), ["it overfits (val_loss was best at step 400 of 1,200)"]),
        (FINE, falling(3.0, 2.0, 1.0, 1.1, step=400), []),
        (FINE, {}, []),
        (
            replace(FINE, num_train=255),
            {},
            [
                "255 training images are few for an image encoder from scratch, of which a pretrained "
                "vision_encoder.backbone needs less"
            ],
        ),
        (replace(FINE, image_side_px=480), {}, ["it sees larger images at 16 px (dataset.image_size)"]),
        (replace(FINE, num_train=None, image_side_px=None), {}, []),
    ],
)
def test_reasons_are_chosen_from_the_run(
    evaluation: Evaluation, history: Mapping[str, Curve], expected: list[str]
) -> None:
    assert likely_reasons(evaluation, tiny_experiment(*SMALL), history) == expected


def test_few_samples_are_no_reason_for_a_pretrained_tower() -> None:
    few = replace(FINE, num_train=255)
    config = tiny_experiment()
    pretrained = replace(config, vision_encoder=replace(config.vision_encoder, backbone="some/clip"))
    assert likely_reasons(few, pretrained, {}) == []


def test_terminal_page_and_card_say_it_and_it_is_stored(tmp_path: Path) -> None:
    """A model that is blind, on squares that a colour histogram knows."""
    model = ColourModel()
    model.encode_image = lambda images, **_: ColourModel().encode_image([image * 0 + 1 for image in images])  # type: ignore[method-assign]
    train = colour_source(60)
    evaluation = evaluate(model, colour_source(24), data="squares", train_source=train)
    (tmp_path / METRICS).write_text("step,val_loss\n10,2.0\n20,1.0\n")
    evaluation = with_reasons(evaluation, tiny_experiment(), tmp_path)
    save_evaluation(evaluation, tmp_path)
    assert read_evaluation(tmp_path) == evaluation
    stream = io.StringIO()
    print_results(evaluation, Console(file=stream, width=100))
    card = model_card(tiny_experiment(), evaluation, {}, tmp_path, 1)
    for text in (stream.getvalue(), render_report(tmp_path), card):
        assert "The model finds less than a colour histogram does: MRR" in text
        assert "20 steps of training are few" in text
        assert "56 training images are few" in text
        assert "Colour histogram: canonical correlations" in text
        assert "ridge baseline: a ridge regression from the image at 16 x 16 pixels" in text


def test_a_better_model_is_left_in_peace(tmp_path: Path) -> None:
    evaluation = evaluate(ColourModel(), colour_source(24), data="squares", train_source=colour_source(6, captions=2))
    evaluation = replace(evaluation, margins={HISTOGRAM: MORE})
    assert with_reasons(evaluation, tiny_experiment(), tmp_path) is evaluation
    assert warnings(evaluation) == []
