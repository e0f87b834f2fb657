"""Every figure has an interval over items, and runs are compared item by item."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fake_model import ColourModel, ListSource, colour_source
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.errors import DataError
from impresa.evaluation.comparison import Comparison, compare
from impresa.evaluation.figures import figures, kind_of
from impresa.evaluation.results import Evaluation
from impresa.reports.comparison import comparison_tables, reading
from impresa.tasks.alignment.evaluate import evaluate

CONFIG = ExperimentConfig(vision_encoder=EncoderConfig(use_mrl=True, mrl_dimensions=(2,)))


class Noisy(ColourModel):
    """Sees colours through noise."""

    scale = 0.6

    def encode_image(self, images: list[torch.Tensor], **options: object) -> torch.Tensor:
        generator = torch.Generator().manual_seed(len(images))
        noise = [self.scale * torch.randn(3, generator=generator) for _ in images]
        return super().encode_image([image + more for image, more in zip(images, noise, strict=True)], **options)


def evaluated(model: type[ColourModel] = ColourModel, num: int = 24) -> Evaluation:
    source = colour_source(num, labels=True, captions=2)
    return evaluate(model(config=CONFIG), source, data="squares", train_source=colour_source(12))


def compared(*models: type[ColourModel]) -> Comparison:
    return compare([model.__name__ for model in models], [evaluated(model) for model in models])


def test_every_figure_has_an_interval_that_holds_it() -> None:
    evaluation = evaluated(Noisy)
    bounds = evaluation.intervals["model"]
    found = figures(evaluation)
    assert found.keys() == bounds.keys()
    for name, value in found.items():
        assert bounds[name].low <= value <= bounds[name].high, name
        assert bounds[name].low < bounds[name].high or "median" in name, name
    for name in ("recall_at_1", "image_to_text_map", "ndcg@2", "zero_shot_accuracy", "alignment", "text_uniformity"):
        assert name in found
    assert evaluation.intervals["colour histogram"].keys() <= bounds.keys()
    assert "chance" not in evaluation.intervals  # it is an expectation, and has no error


def test_the_mean_of_both_directions_is_that_of_its_parts() -> None:
    found = figures(evaluated(Noisy))
    for name in ("recall_at_5", "mrr", "map", "ndcg", "recall_at_1@2"):
        parts = [found[f"{direction}_{name}"] for direction in ("image_to_text", "text_to_image")]
        assert found[name] == pytest.approx(np.mean(parts))


def test_captions_of_one_image_count_as_one_item() -> None:
    """Each image has its captions twice over: as sure as once, not surer."""
    once = colour_source(24, labels=True)
    twice = ListSource([replace(item, captions=(*item.captions, f"{item.captions[0]}!")) for item in once.items])
    widths = []
    for source in (once, twice):
        bounds = evaluate(Noisy(config=CONFIG), source, data="squares").intervals["model"]["text_to_image_mrr"]
        widths.append(bounds.high - bounds.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.2)


def test_the_difference_is_that_of_the_figures_and_paired() -> None:
    found = compared(ColourModel, Noisy)
    first, second = figures(evaluated()), figures(evaluated(Noisy))
    for name, of_runs in found.figures.items():
        assert of_runs.values == (first[name], second[name])
        one = of_runs.differences[1]
        assert one is not None
        assert one.value == pytest.approx(second[name] - first[name])
        if "median" not in name and one.interval is not None:
            assert one.interval.low - 1e-9 <= one.value <= one.interval.high + 1e-9, name
    assert found.figures["zero_shot_accuracy"].differences[1].differs
    assert found.figures["alignment"].differences[1].differs
    assert {"recall_at_1@2", "image_to_text_map@2"} <= found.figures.keys()


def test_other_items_are_refused() -> None:
    with pytest.raises(DataError, match=r"^b: of squares it can use other images, captions or questions than a;"):
        compare(["a", "b"], [evaluated(), evaluated(num=23)])


def test_figures_that_one_run_lacks_are_left_out() -> None:
    without = replace(evaluated(), by_dimension={}, zero_shot=None)
    found = compare(["a", "b", "c"], [evaluated(), without, evaluated()])
    assert found.figures["recall_at_1@2"].values[1] is None
    assert found.figures["recall_at_1@2"].differences[1] is None
    assert found.figures["recall_at_1@2"].differences[2] is not None
    both, last = comparison_tables(found)
    assert "at 2 dimensions" not in both.groups
    assert "at 2 dimensions" in last.groups
    assert (both.columns[1], last.columns[1]) == ("B", "C")


def test_the_table_of_two_runs() -> None:
    found = compared(ColourModel, Noisy)
    table, = comparison_tables(found)  # fmt: skip
    assert table.columns == ("A", "B", "B - A", "95% interval", "verdict")
    rows = {(heading, row.name): row.cells for heading, group in table.groups.items() for row in group}
    assert len(rows) == len(found.figures)
    one = found.figures["zero_shot_accuracy"].differences[1]
    values = [f"{value:.1%}" for value in found.figures["zero_shot_accuracy"].values]
    bounds = f"{one.interval.low * 100:+.1f} to {one.interval.high * 100:+.1f}"
    assert rows["", "zero-shot accuracy"] == (*values, f"{one.value * 100:+.1f}", bounds, "differs")
    assert rows["text → image", "median rank"][-2:] == ("-", "-")  # it differs, and who knows by how much
    assert all(("image → text", label) in rows for label in ("R@1", "mAP", "mean rank"))
    num = sum(
        one.interval is not None or one.value == 0 for _, one in (each.differences for each in found.figures.values())
    )
    assert f"{num} differences are judged" in reading(found)


@pytest.mark.parametrize(("name", "label", "higher"), [
    ("image_to_text_map@64", "image → text mAP at 64 dimensions", True),
    ("mrr", "MRR", True), ("text_to_audio_ndcg", "text → audio NDCG", True), ("bleu", "BLEU", True),
    ("image_effective_rank", "image effective rank", True), ("image_uniformity", "image uniformity", False),
    ("modality_gap", "modality gap", False), ("alignment", "alignment", False),
    ("linear_probe_accuracy", "linear probe accuracy", True), ("token_f1:count", "token F1 (count)", True),
])  # fmt: skip
def test_kinds_of_figures(name: str, label: str, higher: bool) -> None:
    kind = kind_of(name)
    assert (kind.label, kind.higher_is_better) == (label, higher)
