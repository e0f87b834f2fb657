"""Zero-shot classification: ensembles of prompts, ties, the confusion matrix and refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from impresa.errors import ConfigError, DataError
from impresa.evaluation.zero_shot import class_embeddings, zero_shot_metrics

VECTORS = {
    "a cat": [4.0, 0.0, 0.0],
    "a dog": [0.0, 1.0, 0.0],
    "the cat!": [0.0, 0.0, 1.0],
    "the dog!": [0.0, 5.0, 5.0],
}


def encode_text(texts: list[str]) -> torch.Tensor:
    return torch.tensor([VECTORS[text] for text in texts])


def test_class_embedding_is_the_normalised_mean_of_normalised_prompts() -> None:
    found = class_embeddings(encode_text, ["cat", "dog"], ["a {}", "the {}!"])
    half = 0.5**0.5
    expected = F.normalize(torch.tensor([[0.5, 0.0, 0.5], [0.0, (1 + half) / 2, half / 2]]), dim=1)
    torch.testing.assert_close(found.float(), expected)


def test_class_names_with_braces_are_taken_literally() -> None:
    asked = []

    def record(texts: list[str]) -> torch.Tensor:
        asked.extend(texts)
        return torch.eye(len(texts))

    class_embeddings(record, ["{0}", "x"], ["a {} and {weird}"])
    assert asked == ["a {0} and {weird}", "a x and {weird}"]


def test_accuracy_confusion_and_baselines() -> None:
    of_classes = torch.eye(3, dtype=torch.float64)
    images = torch.tensor([[9.0, 1, 0], [1, 9, 0], [0, 1, 9], [1, 9, 0], [9.0, 0, 0]])
    metrics = zero_shot_metrics(images, ["a", "b", "b", "b", "a"], of_classes, ["a", "b", "c"], ["{}"])
    assert metrics.confusion == ((2, 0, 0), (0, 2, 1), (0, 0, 0))
    assert metrics.accuracy == pytest.approx(4 / 5)
    assert metrics.per_class_accuracy == {"a": 1.0, "b": pytest.approx(2 / 3)}
    assert metrics.chance == pytest.approx(1 / 3)
    assert metrics.majority == pytest.approx(3 / 5)
    assert metrics.num_samples == 5


@pytest.mark.parametrize("num_classes", [2, 7])
def test_ties_are_wrong(num_classes: int) -> None:
    of_classes = F.normalize(torch.ones(num_classes, 5, dtype=torch.float64), dim=1)
    names = [str(i) for i in range(num_classes)]
    metrics = zero_shot_metrics(torch.rand(num_classes, 5), names, of_classes, names, ["{}"])
    assert metrics.accuracy == 0.0
    assert sum(map(sum, metrics.confusion)) == num_classes


def test_refuses_a_template_without_a_place_for_the_name() -> None:
    with pytest.raises(ConfigError) as caught:
        class_embeddings(encode_text, ["cat"], ["a photo", "a {}", "nothing"])
    assert len(caught.value.lines) == 2
    assert "dataset.prompt_templates: 'a photo' has no {}" in caught.value.lines[0]


def test_refuses_no_template() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.prompt_templates: is empty"):
        class_embeddings(encode_text, ["cat"], [])


def test_refuses_what_is_not_finite() -> None:
    with pytest.raises(DataError, match="NaN or infinite"):
        zero_shot_metrics(torch.full((1, 2), torch.nan), ["a"], torch.eye(2).double(), ["a", "b"], ["{}"])
    with pytest.raises(DataError, match="NaN or infinite"):
        class_embeddings(lambda texts: torch.full((len(texts), 2), torch.inf), ["a"], ["{}"])


def test_numbers_and_truth_values_as_class_names_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    class_embeddings(lambda texts: torch.eye(len(texts)), ["cat", "v2", "dog"], ["a photo of a {}."])
    assert not caplog.records
    class_embeddings(lambda texts: torch.eye(len(texts)), ["3", "cat"], ["a photo of a {}."])
    assert "a prompt reads 'a photo of a 3.'" in caplog.text
    class_embeddings(lambda texts: torch.eye(len(texts)), ["False", "True"], ["a photo of a {}."])
    assert "a prompt reads 'a photo of a False.'" in caplog.text
    assert "dataset.class_names" in caplog.text
    assert "ClassLabel" in caplog.text
