from __future__ import annotations

import ast
import json
from pathlib import Path

from impresa.evaluation.preview import DataPreview, TrainingSample
from impresa.evaluation.results import (
    AnswerMetrics,
    AnswerScores,
    DirectionMetrics,
    Evaluation,
    RetrievalMetrics,
    ZeroShotMetrics,
)
from impresa.reports.card import model_card
from tiny_run import tiny_experiment
from tiny_vlm import tiny_vlm

ENVIRONMENT = {
    **{
        "started": "2025-01-01T00:00:00+00:00",
        "command": ["impresa", "train"],
        "seed": 7,
        "impresa": "1",
        "python": "3",
    },
    **{"packages": {"torch": "2"}, "git": {"commit": "abc", "has_changes": True}},
}
DIRECTION = DirectionMetrics(
    recall_at={1: 0.5, 5: 0.75, 10: 1.0}, mean_rank=2.25, median_rank=1.5, num_queries=4, num_candidates=4
)
RETRIEVAL = RetrievalMetrics(DIRECTION, DIRECTION)


def card(evaluation: Evaluation, *overrides: str) -> str:
    return model_card(tiny_experiment(*overrides), evaluation, ENVIRONMENT, Path("runs/a"), 1234567)


def test_retrieval_stands_beside_its_baselines() -> None:
    text = card(Evaluation("shapes", 4, 4, 4, retrieval=RETRIEVAL, baselines={"chance": RETRIEVAL}))
    for row in ("50.0% | 75.0% | 100.0% |", "1.5 | 2.2 |"):
        heading = "| **image → text** |" + " |" * row.count("|")
        assert f"{heading}\n| model | {row}\n| chance | {row}\n| **text → image** |" in text
    assert "Zero-shot" not in text


def test_zero_shot_accuracy_stands_beside_chance() -> None:
    shot = ZeroShotMetrics(("a", "b"), ("{}",), 10, 0.9, {"a": 0.9}, ((9, 1), (0, 0)), 0.5, 0.6)
    text = card(Evaluation("digits", 10, 0, 0, zero_shot=shot))
    assert "| model | 90.0% |\n| most frequent class | 60.0% |\n| chance | 50.0% |" in text
    assert "9 of 10 images are named right; 2 classes" in text
    assert "R@1" not in text


def test_labels_and_origin() -> None:
    labels = ("labels.description=Finds things.", "labels.version=2", "labels.tags=[blue]", "labels.model=m")
    text = card(Evaluation("shapes", 4, 4, 4, retrieval=RETRIEVAL), *labels)
    for part in ("# shapes 2", "Finds things.", "- blue", "- Model: m", "1,234,567", "abc with changes", "Seed: 7"):
        assert part in text
    assert "impresa.load('runs/a')" in text


def test_what_an_environment_lacks_is_left_out() -> None:
    text = model_card(tiny_experiment(), Evaluation("shapes", 4, 4, 4, retrieval=RETRIEVAL), {}, Path("runs/a"), 1)
    assert "- Seed: 0" in text
    assert not any(f"- {name}:" in text for name in ("Started", "Command", "Versions", "Commit"))


def test_any_tag_is_yaml() -> None:
    from omegaconf import OmegaConf

    tags = ['it\'s "red"', "\u00e9t\u00e9", "a: b"]
    text = card(
        Evaluation("shapes", 4, 4, 4, retrieval=RETRIEVAL), f"labels.tags={json.dumps(tags, ensure_ascii=False)}"
    )
    head = OmegaConf.create(text.split("---")[1])
    assert list(head.tags)[-3:] == tags


def test_a_model_with_an_audio_encoder_is_asked_with_sounds() -> None:
    scores = AnswerScores(4, 0.5, 0.5)
    answers = AnswerMetrics(scores, scores, None, None, 0.5, 0.0, 1.0)
    evaluation = Evaluation("shapes", 4, 4, 4, answers=answers)
    audio = ("audio_encoder.dim=16", "audio_encoder.depth=1", "audio_encoder.num_heads=2", "audio_encoder.embed_dim=16")
    with_audio, without = (
        model_card(tiny_vlm(*more), evaluation, ENVIRONMENT, Path("runs/a"), 1) for more in (audio, ())
    )
    assert 'model.ask("a.jpg", "what is in the picture?", sounds=["a.wav"])' in with_audio
    assert "sounds" not in without


def preview(*samples: TrainingSample) -> DataPreview:
    return DataPreview({"train": 1200, "val": 60, "test": 60}, 10, False, 3.0, samples)


def test_its_code_speaks_of_the_run_s_own_data() -> None:
    samples = [TrainingSample(f"photos/{n}.webp", None, (f'a "dog" {n}',)) for n in range(3)]
    evaluation = Evaluation("mine", 4, 4, 4, retrieval=RETRIEVAL)
    text = model_card(tiny_experiment(), evaluation, ENVIRONMENT, Path("runs/a"), 1, preview=preview(*samples))
    assert 'model.encode_image(["a.webp", "b.webp"])' in text
    assert r'model.encode_text(["a \"dog\" 0", "a \"dog\" 1"])' in text
    assert "- Rows: train 1,200, val 60, test 60" in text


def test_its_code_asks_a_question_of_the_run_s_own_data() -> None:
    scores = AnswerScores(4, 0.5, 0.5)
    evaluation = Evaluation("x", 4, 4, 4, answers=AnswerMetrics(scores, scores, None, None, 0.5, 0.0, 1.0))
    asked = preview(TrainingSample("row 3", None, (), (("how much is it?", "4 euros"),)))
    text = model_card(tiny_vlm(), evaluation, ENVIRONMENT, Path("runs/a"), 1, preview=asked)
    assert 'model.ask("a.jpg", "how much is it?")' in text


def test_no_text_ends_the_block_of_code() -> None:
    evil = '```\n<script>"); import os #' + "x" * 200
    evaluation = Evaluation("mine", 4, 4, 4, retrieval=RETRIEVAL)
    sample = TrainingSample("1", None, (evil,))
    text = model_card(tiny_experiment(), evaluation, ENVIRONMENT, Path("a"), 1, preview=preview(sample))
    code = text.split("```python\n")[1].split("```")[0]
    line = next(line for line in code.splitlines() if "encode_text" in line)
    (given,) = ast.literal_eval(line.partition("encode_text(")[2].removesuffix(")"))
    assert given == evil[:79] + "…"
