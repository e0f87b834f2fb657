"""The linear probe against scikit-learn itself, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from impresa.errors import DataError
from impresa.evaluation.linear_probe import CHOICES_OF_C, linear_probe

pytest.importorskip("sklearn")


def clusters(num: int, seed: int, spread: float = 0.6) -> tuple[torch.Tensor, list[tuple[int, str]]]:
    """Embeddings around three points, one for each class."""
    generator = torch.Generator().manual_seed(seed)
    labels = [(i, "abc"[i % 3]) for i in range(num)]
    rows = torch.eye(3, 6)[[i % 3 for i in range(num)]] + spread * torch.randn(num, 6, generator=generator)
    return rows, labels


def test_it_is_the_best_of_the_fixed_choices_on_training_images_alone() -> None:
    from sklearn.linear_model import LogisticRegression

    train, labels = clusters(150, 0)
    test, true = clusters(90, 1)
    found = linear_probe(train, labels, test, true, data="clusters")
    x, z = (torch.nn.functional.normalize(rows.double(), dim=1).numpy() for rows in (train, test))
    y, kept = [name for _, name in labels], [i % 5 != 4 for i in range(150)]
    held_out = [i for i in range(150) if not kept[i]]
    fitted = {
        c: LogisticRegression(C=c, max_iter=1000).fit(
            x[kept], [name for name, keep in zip(y, kept, strict=True) if keep]
        )
        for c in CHOICES_OF_C
    }
    scores = {c: model.score(x[held_out], [y[i] for i in held_out]) for c, model in fitted.items()}
    assert found.c == min(c for c in scores if scores[c] == max(scores.values()))
    whole = LogisticRegression(C=found.c, max_iter=1000).fit(x, y)
    assert found.accuracy == pytest.approx(whole.score(z, [name for _, name in true]))
    assert 0.6 < found.accuracy < 1
    assert (found.num_train, found.num_samples, found.classes) == (150, 90, 3)
    assert found.queries is not None
    assert found.queries.mean("right").value == pytest.approx(found.accuracy)


def test_a_class_that_training_has_not_is_wrong() -> None:
    train, labels = clusters(60, 0, spread=0.01)
    found = linear_probe(train, labels, train[:3], [(0, "a"), (1, "b"), (2, "new")], data="clusters")
    assert found.accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize(("train", "test", "fault"), [
    ([], [(0, "a")], "the training images have no labels"),
    ([(0, "a"), (1, "a")], [(0, "a")], "the training images have one class"),
    ([(0, "a"), (1, "b")], [], "no image of squares has a label"),
])  # fmt: skip
def test_refusals(train: list[tuple[int, str]], test: list[tuple[int, str]], fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        linear_probe(torch.eye(2), train, torch.eye(2), test, data="squares")
