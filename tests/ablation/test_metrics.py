"""The names that a metric of a study may have are those that evaluations give."""

from __future__ import annotations

import pytest

from impresa.ablation.metrics import default_metric, fault_of_metric
from impresa.config import load_experiment, read_config
from impresa.evaluation.figures import figures
from impresa.evaluation.results import AnswerMetrics, AnswerScores, DirectionMetrics, Evaluation, read_evaluation
from impresa.run_dir.layout import CONFIG
from tiny_run import finished_run

FOUND = DirectionMetrics({1: 0.5, 5: 0.5, 10: 0.5}, 2.0, 2.0, 4, 4)


def test_every_figure_of_a_run_may_be_a_metric() -> None:
    evaluation = read_evaluation(finished_run())
    assert evaluation is not None
    config = read_config(finished_run() / CONFIG)
    names = figures(evaluation)
    assert default_metric(config) in names
    assert [fault for name in names if (fault := fault_of_metric(name, config))] == []


def test_so_may_those_of_sounds_and_of_answers() -> None:
    scores = AnswerScores(4, 0.5, 0.5)
    answers = AnswerMetrics(scores, scores, scores, 0.5, 0.5, 1.0, 2.0, {"colour": {"model": scores}})
    heard = {name: {"model": FOUND} for name in ("audio_to_text", "image_to_audio", "text_to_image+audio")}
    fused = ("losses.pairs=[image-text,image-audio,image+audio-text]", "trainer.epochs=1")
    for config, found in (
        (load_experiment("shapes_audio", fused), Evaluation("", 4, 4, 4, sound=heard)),
        (load_experiment("shapes_vqa_trm"), Evaluation("", 4, 4, 4, answers=answers)),
    ):
        assert [fault for name in figures(found) if (fault := fault_of_metric(name, config))] == []
        other = load_experiment("shapes")
        assert all(fault_of_metric(name, other) for name in figures(found))
    assert default_metric(config) == "exact_match"


@pytest.mark.parametrize("name", ["", "@16", "recall_at_1@", "exact_match:", "exact_match:colour", "Recall_at_1"])
def test_other_names_are_refused(name: str) -> None:
    assert fault_of_metric(name, load_experiment("shapes"))
