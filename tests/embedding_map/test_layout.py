"""Two dimensions: against scikit-learn, the same each time; neighbours against brute force."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from impresa.embedding_map import layout
from impresa.embedding_map.layout import TSNE_STEPS, centre_groups, find_neighbours, lay_out
from impresa.embedding_map.request import check_method
from impresa.errors import ConfigError, DataError


def unit(num: int, dim: int) -> Tensor:
    return F.normalize(torch.randn(num, dim, generator=torch.Generator().manual_seed(num)).double(), dim=1)


@pytest.mark.parametrize(("num", "dim"), [(200, 16), (12, 40), (3, 2), (2, 5)])
def test_components_are_those_of_scikit_learn_signs_included(num: int, dim: int) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    vectors = unit(num, dim) * torch.linspace(1, 2, dim)
    reference = decomposition.PCA(n_components=2, svd_solver="full")
    xy = torch.from_numpy(reference.fit_transform(vectors.numpy()))
    found = lay_out(vectors, "pca")
    if num == 2:  # there is no second direction, and rounding chooses one
        xy, found.xy[:, 1] = xy * torch.tensor([1, 0]), 0
    torch.testing.assert_close(found.xy, xy, rtol=1e-9, atol=1e-9)
    assert found.explained == pytest.approx(reference.explained_variance_ratio_[:2], abs=1e-9)


@pytest.mark.parametrize("vectors", [unit(1, 8), unit(1, 8).repeat(5, 1), unit(4, 1), torch.zeros(3, 4).double()])
def test_points_that_cannot_be_told_apart_are_drawn_all_the_same(vectors: Tensor) -> None:
    found = lay_out(vectors, "pca")
    assert found.xy.shape == (len(vectors), 2)
    assert found.xy.isfinite().all()
    assert found.explained is not None
    assert 0 <= sum(found.explained) <= 1 + 1e-9


def test_centring_takes_each_groups_mean_away_and_nothing_else() -> None:
    vectors = unit(10, 4)
    vectors[4:] += 3
    moved = centre_groups(vectors, [range(4), range(4, 10), []])
    torch.testing.assert_close(moved[:4].mean(dim=0), torch.zeros(4).double())
    torch.testing.assert_close(moved[4:].mean(dim=0), torch.zeros(4).double())
    torch.testing.assert_close(moved[1] - moved[0], vectors[1] - vectors[0])


@pytest.mark.parametrize("held", [1, 200, 1 << 23])
def test_neighbours_are_those_of_brute_force(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_SCORES_AT_A_TIME", held)
    vectors = unit(67, 8)
    cosines = (vectors @ vectors.T).fill_diagonal_(-2)
    expected = cosines.sort(dim=1, descending=True)
    found = find_neighbours(vectors)
    assert torch.equal(found.ids, expected.indices[:, :10])
    torch.testing.assert_close(found.distances, 1 - expected.values[:, :10].float(), atol=1e-6, rtol=0)


def test_a_few_points_have_fewer_neighbours() -> None:
    assert find_neighbours(unit(1, 4)).ids.shape == (1, 0)
    assert find_neighbours(unit(3, 4)).ids.sort(dim=1).values.tolist() == [[1, 2], [0, 2], [0, 1]]


def test_tsne_without_its_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impresa.embedding_map.request.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--method: tsne needs openTSNE \(pip install 'impresa\[map\]'\)"):
        check_method("tsne")
    check_method("pca")


def test_tsne_needs_some_points() -> None:
    with pytest.raises(DataError, match="tsne needs 10 points, and there are 9; use pca"):
        lay_out(unit(9, 4), "tsne")


def test_tsne_keeps_neighbourhoods_and_is_the_same_each_time() -> None:
    pytest.importorskip("openTSNE")
    centres = torch.eye(3, 6).double() * 4
    vectors = F.normalize((centres[:, None] + unit(60, 6).reshape(3, 20, 6)).reshape(60, 6), dim=1)
    steps: list[int] = []
    found = lay_out(vectors, "tsne", steps.append)
    assert sum(steps) == TSNE_STEPS
    assert found.explained is None
    nearest = torch.cdist(found.xy, found.xy).fill_diagonal_(torch.inf).argmin(dim=1)
    assert torch.equal(nearest // 20, torch.arange(60) // 20)
    assert torch.equal(found.xy, lay_out(vectors, "tsne").xy)
