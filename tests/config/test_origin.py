"""The towers of an experiment in words."""

from __future__ import annotations

from pathlib import Path

from impresa.config.origin import towers_in_words
from impresa.config.runs import prepare
from impresa.evaluation.results import Evaluation
from impresa.reports.card import model_card
from tiny_run import dry_run_of, finished_run
from tiny_vlm import tiny_vlm, tiny_vlm_on


def test_an_encoder_of_a_run_has_its_name_and_its_widths() -> None:
    run = finished_run()
    config = prepare(tiny_vlm_on(run))
    vision = config.vision_encoder
    line = towers_in_words(config)["vision_encoder"]
    assert line.startswith(f"vit, width {vision.dim}, {vision.depth} block")
    assert line.endswith(f"of the run {run}, frozen")
    assert str(run) in model_card(config, Evaluation("shapes", 4, 4, 4), {}, Path("runs/a"), 1).replace("\\", "")


def test_an_encoder_from_scratch_says_so() -> None:
    line = towers_in_words(tiny_vlm())["vision_encoder"]
    assert line == "vit, width 16, 2 blocks, patches of 8 px, images of 16 px, trained here from scratch"
    assert f"vision_encoder: {line}" in dry_run_of(tiny_vlm())
    tuned = towers_in_words(prepare(tiny_vlm_on(finished_run(), "vision_encoder.freeze=false")))
    assert tuned["vision_encoder"].endswith("trained on")
