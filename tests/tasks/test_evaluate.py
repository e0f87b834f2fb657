"""The whole evaluation on a model that sees colours, with bad samples, labels, repeated captions and storage."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from fake_model import COLOURS, ColourModel, ListSource, colour_source
from impresa.config.dataset import DatasetConfig
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.data.sample import Sample
from impresa.data.sources.base import BadSample
from impresa.errors import CheckpointError, ConfigError, DataError
from impresa.evaluation.results import HISTOGRAM, RIDGE, Evaluation, read_evaluation, save_evaluation
from impresa.evaluation.retrieval import CHANCE, retrieval_metrics
from impresa.run_dir.layout import EVALUATION, GALLERY
from impresa.tasks.alignment.evaluate import evaluate

DIRECTION = '{"recall_at": {"1": 0.5, "5": 1.0, "10": 1.0}, "mean_rank": 1.5, "median_rank": 1.0, %s}'
DIRECTION %= '"num_queries": 2, "num_candidates": 2'
BOTH = f'{{"image_to_text": {DIRECTION}, "text_to_image": {DIRECTION}}}'
SCORES = '{"num_questions": 4, "exact_match": 0.25, "token_f1": 0.5}'
STORED = f"""{{
  "data": "shapes, test split", "num_images": 2, "num_texts": 2, "num_distinct_texts": 2,
  "bad_samples": [{{"id": "a.png", "reason": "no image"}}],
  "retrieval": {BOTH}, "baselines": {{"chance": {BOTH}}}, "by_dimension": {{"8": {BOTH}}},
  "num_sounds": 1, "sound": {{"audio_to_text": {{"model": {DIRECTION}}}}},
  "zero_shot": {{
    "classes": ["a", "b"], "templates": ["{{}}"], "num_samples": 2, "accuracy": 0.5, "per_class_accuracy": {{"a": 0.5}},
    "confusion": [[1, 1], [0, 0]], "chance": 0.5, "majority": 1.0
  }},
  "answers": {{
    "model": {SCORES}, "shuffled": {SCORES}, "blind": null,
    "bleu": null, "rouge_l": 0.5, "loss": 1.0, "perplexity": 2.7,
    "kinds": {{"count": {{"model": {SCORES}, "shuffled": {SCORES}, "blind": {SCORES}}}}}
  }}
}}"""


def test_counts_metrics_and_baselines() -> None:
    source, model = colour_source(24, captions=2), ColourModel()
    result = evaluate(model, source, data="squares", train_source=colour_source(60))
    assert (result.data, result.num_images, result.num_texts, result.num_distinct_texts) == ("squares", 24, 48, 48)
    assert list(result.baselines) == [HISTOGRAM, RIDGE, CHANCE]
    captions = list(source.captions())
    images = torch.stack([model.preprocessing.image(source[i].image) for i in range(24)])
    direct = retrieval_metrics(images, model.encode_text(captions), torch.arange(24).repeat_interleave(2), captions)
    assert result.retrieval == direct
    assert result.baselines[CHANCE].image_to_text.recall_at[1] == pytest.approx(2 / 48)
    assert result.baselines[HISTOGRAM].image_to_text.recall_at[10] > 0.5
    assert result.zero_shot is None
    assert result.bad_samples == ()


def test_matryoshka_dimensions_are_evaluated_each() -> None:
    vision = EncoderConfig(use_mrl=True, mrl_dimensions=(2, 1))
    model = ColourModel(config=ExperimentConfig(vision_encoder=vision))
    source = colour_source(24)
    result = evaluate(model, source, data="squares")
    captions = list(source.captions())
    images = torch.stack([model.preprocessing.image(source[i].image) for i in range(24)])
    for dim in (2, 1):
        cut = retrieval_metrics(images[:, :dim], model.encode_text(captions)[:, :dim], torch.arange(24), captions)
        assert result.by_dimension[dim] == cut
    assert list(result.retrieval_rows()) == ["model", "first 2 dimensions", "first 1 dimensions", CHANCE]
    assert result.by_dimension[1] != result.retrieval


def test_margins_are_paired_with_each_fitted_baseline() -> None:
    result = evaluate(ColourModel(), colour_source(24), data="squares", train_source=colour_source(60, size=(300, 200)))
    assert (result.num_train, result.image_side_px) == (56, 8)  # the brightest squares are equal
    assert list(result.margins) == [HISTOGRAM, RIDGE]
    for name, margin in result.margins.items():
        mrr = [
            (found.image_to_text.mrr + found.text_to_image.mrr) / 2
            for found in (result.retrieval, result.baselines[name])
        ]
        assert (margin.model, margin.baseline) == pytest.approx(tuple(mrr))
        assert margin.interval is not None
        assert margin.interval.low <= margin.value <= margin.interval.high
        widths = [
            bounds["mrr"].high - bounds["mrr"].low for bounds in (result.intervals["model"], result.intervals[name])
        ]
        assert margin.interval.high - margin.interval.low < sum(widths)


def test_a_baseline_that_takes_longer_than_seconds_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impresa.evaluation.baselines.MAX_PRODUCTS", 24 * 24 * 40)
    train = colour_source(200)  # more words than colours
    result = evaluate(ColourModel(), colour_source(24), data="squares", train_source=train)
    assert list(result.baselines) == [CHANCE]
    monkeypatch.setattr("impresa.evaluation.baselines.MAX_PRODUCTS", 24 * 24 * 64)
    result = evaluate(ColourModel(), colour_source(24), data="squares", train_source=train)
    assert list(result.baselines) == [*result.margins, CHANCE] == [HISTOGRAM, CHANCE]


def test_no_training_source_leaves_the_histogram_out() -> None:
    assert list(evaluate(ColourModel(), colour_source(), data="squares").baselines) == [CHANCE]


def test_batch_size_bounds_the_images_in_flight_and_changes_nothing() -> None:
    model = ColourModel()
    result = evaluate(model, colour_source(10), data="squares", batch_size=4)
    assert [n for kind, n in model.calls if kind == "image"] == [4, 4, 2]
    assert result == evaluate(ColourModel(), colour_source(10), data="squares", batch_size=10)


def one_row_per_caption(source: ListSource) -> ListSource:
    """The same data as a table of captions would have them, image by image in turns."""
    rows = [
        replace(item, id=f"{item.id}-{number}", image=item.image.copy(), captions=(item.captions[number],))
        for number in range(len(source.items[0].captions))
        for item in source.items
    ]
    return ListSource(rows)


def test_one_row_per_caption_is_the_same_as_lists_of_captions() -> None:
    lists, model = colour_source(12, captions=5, labels=True), ColourModel()
    for item in lists.items[:3]:
        item.label = None
    rows = one_row_per_caption(lists)
    train = colour_source(40, captions=3)
    listed = evaluate(model, lists, data="squares", train_source=train, batch_size=5)
    model.calls.clear()
    by_row = evaluate(model, rows, data="squares", train_source=one_row_per_caption(train), batch_size=5)
    assert len(rows) == 60
    assert [number for kind, number in model.calls if kind == "image"] == [5, 5, 2]
    assert (by_row.num_images, by_row.num_texts, by_row.zero_shot.num_samples) == (12, 60, 9)
    assert by_row.retrieval.text_to_image.num_candidates == 12
    for name, expected in listed.baselines.items():
        found = by_row.baselines[name]
        assert (found.image_to_text, found.text_to_image) == (expected.image_to_text, expected.text_to_image)
    assert by_row == listed
    shown = [example.image for example in by_row.gallery.image_queries]
    assert len(set(shown)) == len(shown) == 6


def test_an_image_with_two_labels_counts_once_with_each() -> None:
    (red, green) = colour_source(2, labels=True).items
    rows = [red, replace(red, id="again"), replace(red, id="other", label="green"), green]
    found = evaluate(ColourModel.with_templates("a {} thing"), ListSource(rows), data="squares").zero_shot
    assert (found.num_samples, found.accuracy) == (3, pytest.approx(2 / 3))
    assert found.confusion == ((1, 1), (0, 1))


def test_equal_captions_are_embedded_once() -> None:
    source = ListSource(
        [Sample(id=str(i), image=item.image, captions=("red square",)) for i, item in enumerate(colour_source(6).items)]
    )
    model = ColourModel()
    result = evaluate(model, source, data="squares")
    assert ("text", 1) in model.calls
    assert result.num_distinct_texts == 1
    assert result.retrieval.text_to_image.recall_at[1] == 1.0  # every image is right for the one caption


def test_bad_samples_are_skipped_and_listed() -> None:
    source = colour_source(12)
    source.items[3] = BadSample("square-3", "truncated JPEG")
    source.items[7] = Sample(id="square-7", captions=("lost",))
    result = evaluate(ColourModel(), source, data="squares", batch_size=5)
    assert result.num_images == 10
    assert [(note.id, note.reason) for note in result.bad_samples] == [
        ("square-3", "truncated JPEG"),
        ("square-7", "no image"),
    ]
    rest = ListSource([item for i, item in enumerate(source.items) if i not in (3, 7)])
    assert result.retrieval == evaluate(ColourModel(), rest, data="squares").retrieval


def test_zero_shot_with_labels_and_classes_of_the_training_data() -> None:
    model = ColourModel.with_templates("a {} thing", "some {}.")
    source = colour_source(12, labels=True)
    alone = evaluate(model, ListSource(source.items[:2]), data="squares").zero_shot
    assert alone.classes == ("green", "red")
    result = evaluate(model, ListSource(source.items[:2]), data="squares", train_source=source).zero_shot
    assert result.classes == tuple(sorted(COLOURS))
    assert result.templates == ("a {} thing", "some {}.")
    assert result.accuracy == 1.0
    assert result.chance == pytest.approx(1 / 6)


def test_the_names_of_the_config_are_classes_to_choose_from() -> None:
    model = ColourModel(config=ExperimentConfig(dataset=DatasetConfig(class_names=tuple(COLOURS))))
    result = evaluate(model, ListSource(colour_source(12, labels=True).items[:2]), data="squares").zero_shot
    assert result.classes == tuple(sorted(COLOURS))


def test_labels_without_captions() -> None:
    items = [Sample(id=s.id, image=s.image, label=s.label) for s in colour_source(12, labels=True).items]
    items.append(Sample(id="unlabelled", image=Image.new("RGB", (4, 4))))
    result = evaluate(ColourModel(), ListSource(items), data="squares")
    assert result.retrieval is None
    assert result.zero_shot.num_samples == 12
    assert result.num_images == 13


def test_refusals() -> None:
    with pytest.raises(DataError, match=r"squares: no usable sample \(x: no pixels\)"):
        evaluate(ColourModel(), ListSource([BadSample("x", "no pixels")]), data="squares")
    with pytest.raises(DataError, match="squares: no usable sample \\(it is empty\\)"):
        evaluate(ColourModel(), ListSource([]), data="squares")
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate(ColourModel(), ListSource([Sample(id="x", image=Image.new("RGB", (4, 4)))]), data="squares")
    with pytest.raises(DataError, match="NaN or infinite"):
        evaluate(ColourModel(broken=True), colour_source(), data="squares")
    with pytest.raises(ConfigError, match="has no "):
        evaluate(ColourModel.with_templates("a photo"), colour_source(labels=True), data="squares")


def test_gallery_shows_the_best_answers_and_marks_the_right_ones() -> None:
    source, model = colour_source(24, captions=2), ColourModel()
    gallery = evaluate(model, source, data="squares").gallery
    assert len(gallery.image_queries) == len(gallery.text_queries) == 6
    texts = list(source.captions())
    for example in gallery.image_queries:
        assert len(example.answers) == 5
        scores = [answer.score for answer in example.answers]
        assert scores == sorted(scores, reverse=True)
        for answer in example.answers:
            assert answer.right == (answer.caption in example.captions)
            assert answer.caption in texts
    for example in gallery.text_queries:
        assert example.image is None
        picture = Image.open(io.BytesIO(base64.b64decode(example.answers[0].image.split(",")[1])))
        colour = min(
            COLOURS,
            key=lambda name: sum((a - b) ** 2 for a, b in zip(COLOURS[name], picture.getpixel((0, 0)), strict=True)),
        )
        assert example.captions[0].startswith(colour)
    assert {a.right for e in (*gallery.image_queries, *gallery.text_queries) for a in e.answers} == {True, False}


def test_gallery_puts_wrong_answers_first_at_a_tie() -> None:
    black = [Sample(id=str(i), image=Image.new("RGB", (4, 4 + i)), captions=(f"black {i}",)) for i in range(8)]
    gallery = evaluate(ColourModel(), ListSource(black), data="squares").gallery
    assert not any(answer.right for example in gallery.image_queries for answer in example.answers)
    assert not any(answer.right for example in gallery.text_queries for answer in example.answers)


def test_similarity_sample_is_square_and_small() -> None:
    gallery = evaluate(ColourModel(), colour_source(100), data="squares").gallery
    assert len(gallery.similarity) == len(gallery.similarity_captions) == 32
    assert all(len(row) == 32 for row in gallery.similarity)
    assert all(row[i] == max(row) for i, row in enumerate(gallery.similarity))


@pytest.mark.parametrize(("size", "shown", "kind"), [((12, 9), (12, 9), "png"), ((640, 320), (160, 80), "jpeg")])
def test_thumbnails_are_small(size: tuple[int, int], shown: tuple[int, int], kind: str) -> None:
    uri = evaluate(ColourModel(), colour_source(2, size=size), data="squares").gallery.image_queries[0].image
    assert uri.startswith(f"data:image/{kind};base64,")
    assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == shown


def test_results_survive_the_disk(tmp_path: Path) -> None:
    source = colour_source(12, labels=True)
    source.items.append(BadSample("bad \u00e9", "<reason>"))
    result = evaluate(ColourModel(), source, data="squares", train_source=source)
    save_evaluation(result, tmp_path)
    again = read_evaluation(tmp_path)
    assert again == result
    assert again.gallery == result.gallery
    assert (
        TypeAdapter(Evaluation).validate_python(json.loads((tmp_path / EVALUATION).read_text(encoding="utf-8")))
        == result
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evaluation", "evaluation.json"]


def test_stored_evaluations_stay_readable(tmp_path: Path) -> None:
    """As version 0.1.0 wrote it: new fields need defaults, and old ones keep their names."""
    (tmp_path / EVALUATION).write_text(STORED)
    result = read_evaluation(tmp_path)
    assert result.baselines["chance"].text_to_image.recall_at == {1: 0.5, 5: 1.0, 10: 1.0}
    assert result.answers.kinds["count"]["blind"].token_f1 == 0.5
    save_evaluation(result, tmp_path)
    stored = json.loads(STORED)
    assert known_part(json.loads((tmp_path / EVALUATION).read_text()), stored) == stored


def known_part(new: Any, old: Any) -> Any:
    """What is under the keys of `old` in `new`, which may have more of them."""
    return {key: known_part(new[key], value) for key, value in old.items()} if isinstance(old, dict) else new


def test_run_without_evaluation_has_none(tmp_path: Path) -> None:
    assert read_evaluation(tmp_path) is None


@pytest.mark.parametrize("content", ['{"data": 3}', "{broken", "[]", '{"data": "x", "num_images": "many"}'])
def test_broken_file_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / EVALUATION).write_text(content)
    with pytest.raises(CheckpointError, match=r"evaluation\.json: .*; run `impresa eval`") as caught:
        read_evaluation(tmp_path)
    assert len(caught.value.lines) == 1
    assert "\n" not in caught.value.lines[0]


def test_gallery_alone_is_not_needed(tmp_path: Path) -> None:
    save_evaluation(evaluate(ColourModel(), colour_source(), data="squares"), tmp_path)
    (tmp_path / GALLERY).unlink()
    assert read_evaluation(tmp_path).gallery.image_queries == ()


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(ColourModel(), colour_source(), data="squares", train_source=colour_source(), show_progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "embedding images" in shown.err
    evaluate(ColourModel(), colour_source(), data="squares")
    assert capsys.readouterr().err == ""
