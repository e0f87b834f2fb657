"""Geometry of embeddings against the papers' formulas in float64, and intervals against recomputed resamples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from impresa.errors import DataError
from impresa.evaluation import space
from impresa.evaluation.bootstrap import intervals
from impresa.evaluation.results import EmbeddingSpace
from impresa.evaluation.retrieval import RightAnswers
from impresa.evaluation.space import embedding_space

CAPTIONS = [f"caption {i}" for i in range(70)]
IMAGE_OF_CAPTION = torch.cat([torch.arange(50), torch.arange(20)])


def case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(55, 8, generator=generator) * torch.linspace(1, 3, 8) + 0.5
    texts = images[IMAGE_OF_CAPTION] + torch.randn(70, 8, generator=generator) - 1
    return images, texts


def unit(rows: torch.Tensor) -> np.ndarray:
    found = rows.double().numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def uniformity(rows: np.ndarray) -> float:
    pairs = [(i, j) for i in range(len(rows)) for j in range(i)]
    return float(np.log(np.mean([np.exp(-2 * ((rows[i] - rows[j]) ** 2).sum()) for i, j in pairs])))


def effective_rank(rows: np.ndarray) -> float:
    singular = np.linalg.svd(rows, compute_uv=False)
    shares = singular / singular.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def measured() -> EmbeddingSpace:
    images, texts = case()
    return embedding_space({"image": images, "text": texts}, RightAnswers(IMAGE_OF_CAPTION, CAPTIONS, 55))


def test_equals_the_formulas() -> None:
    images, texts = map(unit, case())
    found = measured()
    for modality, rows in {"image": images, "text": texts}.items():
        assert found.modalities[modality].num_rows == len(rows)
        assert found.modalities[modality].uniformity == pytest.approx(uniformity(rows), abs=1e-9)
        assert found.modalities[modality].effective_rank == pytest.approx(effective_rank(rows), abs=1e-9)
    of_caption = images[IMAGE_OF_CAPTION.numpy()]
    assert found.alignment == pytest.approx(((of_caption - texts) ** 2).sum(axis=1).mean(), abs=1e-12)
    gap = np.linalg.norm(images[:50].mean(axis=0) - texts.mean(axis=0))  # the last five have no caption
    assert found.modality_gap == pytest.approx(gap, abs=1e-12)


def test_few_rows_of_many_dimensions_are_those_of_few_dimensions() -> None:
    """Turned into a space of more dimensions than there are rows, they are as they were."""
    images, texts = case()
    turn = torch.linalg.qr(torch.randn(300, images.shape[1], dtype=torch.float64)).Q.T
    right = RightAnswers(IMAGE_OF_CAPTION, CAPTIONS, 55)
    wide = embedding_space({"image": images.double() @ turn, "text": texts.double() @ turn}, right)
    for modality, found in measured().modalities.items():
        other = wide.modalities[modality]
        assert other.effective_rank == pytest.approx(found.effective_rank, abs=1e-6)
        one, two = (intervals({"rank": space.statistics["effective_rank"]})["rank"] for space in (found, other))
        assert (two.low, two.high) == pytest.approx((one.low, one.high), abs=1e-6)


def test_blocks_change_nothing_and_many_rows_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measured()
    monkeypatch.setattr(space, "CHUNK_ELEMENTS", 200)
    assert measured().modalities["text"].uniformity == pytest.approx(whole.modalities["text"].uniformity, abs=1e-12)
    monkeypatch.setattr(space, "MAX_UNIFORMITY_ROWS", 11)
    images = unit(case()[0])[::5]
    assert measured().modalities["image"].uniformity == pytest.approx(uniformity(images), abs=1e-9)


def test_intervals_are_as_wide_as_those_of_recomputed_resamples() -> None:
    """Nothing is computed again for a resample, and yet the errors are those of doing so."""
    images, texts = map(unit, case())
    found = measured()
    statistics = {"gap": found.statistics["modality_gap"], "alignment": found.statistics["alignment"]}
    statistics |= found.modalities["image"].statistics
    random = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {name: [] for name in ("effective_rank", "uniformity", "gap")}
    captions_of = [np.flatnonzero(IMAGE_OF_CAPTION.numpy() == image) for image in range(55)]
    for _ in range(150):
        chosen = random.integers(55, size=55)
        drawn["effective_rank"].append(effective_rank(images[chosen]))
        rows = images[chosen]
        kernel = np.exp(-2 * ((rows[:, None] - rows) ** 2).sum(axis=2))
        kernel[chosen[:, None] == chosen] = np.nan  # copies of one row are no pair
        drawn["uniformity"].append(float(np.log(np.nanmean(kernel))))
        described = chosen[chosen < 50]
        of_chosen = np.concatenate([captions_of[image] for image in described])
        drawn["gap"].append(float(np.linalg.norm(images[described].mean(axis=0) - texts[of_chosen].mean(axis=0))))
    for name, values in drawn.items():
        bounds = intervals({name: statistics[name]})[name]
        assert bounds.high - bounds.low == pytest.approx(2 * 1.96 * np.std(values), rel=0.25), name
        assert bounds.low < statistics[name].value < bounds.high


def test_collapsed_and_single_embeddings() -> None:
    same = embedding_space({"image": torch.ones(5, 3), "text": torch.ones(1, 3)}).modalities
    assert (same["image"].uniformity, same["image"].effective_rank) == (
        pytest.approx(0.0, abs=1e-9),
        pytest.approx(1.0),
    )
    assert (same["text"].uniformity, same["text"].effective_rank) == (None, pytest.approx(1.0))
    assert embedding_space({"image": torch.zeros(3, 3)}).modalities["image"].effective_rank == 0
    evenly = embedding_space({"image": torch.eye(6)}).modalities["image"]
    assert evenly.effective_rank == pytest.approx(6.0)
    assert evenly.uniformity == pytest.approx(-4.0)


def test_refuses_what_is_not_finite() -> None:
    with pytest.raises(DataError, match="audio embeddings: 1 of 2 are NaN or infinite"):
        embedding_space({"audio": torch.tensor([[1.0, torch.nan], [1.0, 1.0]])})
