"""Retrieval metrics against a brute-force reference, with ties, repeated captions, blocks and broken embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from impresa.errors import DataError
from impresa.evaluation import retrieval
from impresa.evaluation.baselines import chance
from impresa.evaluation.results import RetrievalMetrics
from impresa.evaluation.retrieval import RightAnswers, retrieval_metrics

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]


def reference_ranks(
    images: torch.Tensor, texts: torch.Tensor, image_of_text: list[int], captions: list[str]
) -> tuple[list[int], list[int]]:
    """Ranks in both directions by loops over float64 cosines."""
    images = np.asarray(images, dtype=np.float64)
    texts = np.asarray(texts, dtype=np.float64)
    unit_images = images / np.linalg.norm(images, axis=1, keepdims=True)
    unit_texts = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    scores = np.array([[float(np.dot(a, b)) for b in unit_texts] for a in unit_images])
    captions_of = [{captions[t] for t in range(len(captions)) if image_of_text[t] == i} for i in range(len(images))]

    def rank(scores_of_query: np.ndarray, right: list[bool]) -> int | None:
        if not any(right):
            return None
        best = max(s for s, r in zip(scores_of_query, right, strict=True) if r)
        return 1 + sum(s >= best - 1e-12 for s, r in zip(scores_of_query, right, strict=True) if not r)

    by_image = [rank(scores[i], [c in captions_of[i] for c in captions]) for i in range(len(images))]
    by_text = [rank(scores[:, t], [captions[t] in known for known in captions_of]) for t in range(len(captions))]
    return [r for r in by_image if r is not None], by_text


def check_against_reference(
    images: torch.Tensor, texts: torch.Tensor, image_of_text: torch.Tensor, captions: list[str]
) -> RetrievalMetrics:
    metrics = retrieval_metrics(images, texts, image_of_text, captions)
    expected = reference_ranks(images, texts, image_of_text.tolist(), captions)
    for direction, ranks in zip((metrics.image_to_text, metrics.text_to_image), expected, strict=True):
        assert direction.num_queries == len(ranks)
        assert direction.mean_rank == pytest.approx(np.mean(ranks), abs=1e-12)
        assert direction.median_rank == pytest.approx(np.median(ranks), abs=1e-12)
        for k in (1, 5, 10):
            assert direction.recall_at[k] == pytest.approx(np.mean(np.array(ranks) <= k), abs=1e-12)
    return metrics


def random_case(num_images: int, texts_per_image: int, num_distinct: int) -> Case:
    generator = torch.Generator().manual_seed(0)
    image_of_text = torch.arange(num_images).repeat_interleave(texts_per_image)
    images = torch.randn(num_images, 6, generator=generator)
    texts = images[image_of_text] + torch.randn(len(image_of_text), 6, generator=generator)
    drawn = torch.randint(num_distinct, (len(image_of_text),), generator=generator)
    return images, texts, image_of_text, [f"caption {i}" for i in drawn.tolist()]


@pytest.mark.parametrize("texts_per_image", [1, 3])
@pytest.mark.parametrize("num_distinct", [10_000, 25, 2])
def test_equals_the_reference(texts_per_image: int, num_distinct: int) -> None:
    check_against_reference(*random_case(40, texts_per_image, num_distinct))


def test_order_of_the_texts_and_images_without_text_do_not_matter() -> None:
    images, texts, image_of_text, captions = random_case(30, 2, 40)
    shuffled = torch.randperm(len(captions), generator=torch.Generator().manual_seed(1))[:-7]
    case = (images, texts[shuffled], image_of_text[shuffled], [captions[i] for i in shuffled.tolist()])
    metrics = check_against_reference(*case)
    assert metrics.text_to_image.num_candidates == 30


def test_image_without_text_is_a_candidate_but_no_query() -> None:
    images = torch.eye(3)
    metrics = retrieval_metrics(images, images[:2], torch.tensor([0, 1]), ["a", "b"])
    assert metrics.image_to_text.num_queries == 2
    assert metrics.text_to_image.num_candidates == 3


def test_perfect_embeddings_rank_first() -> None:
    metrics = retrieval_metrics(torch.eye(20), 3 * torch.eye(20), torch.arange(20), [str(i) for i in range(20)])
    for direction in (metrics.image_to_text, metrics.text_to_image):
        assert direction.recall_at == {1: 1.0, 5: 1.0, 10: 1.0}
        assert direction.mean_rank == direction.median_rank == 1.0


@pytest.mark.parametrize("dim", [3, 64, 257])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_constant_embedding_is_never_above_chance(dim: int, scale: float) -> None:
    torch.manual_seed(dim)
    constant = scale * torch.randn(1, dim)
    captions = [f"caption {i // 2}" for i in range(60)]
    metrics = retrieval_metrics(constant.expand(60, -1), constant.expand(60, -1), torch.arange(60), captions)
    guess = chance(RightAnswers(torch.arange(60), captions, 60))
    for direction, guessed in (
        (metrics.image_to_text, guess.image_to_text),
        (metrics.text_to_image, guess.text_to_image),
    ):
        assert direction.mean_rank == 59  # 58 of 60 candidates are wrong, and all of them tie
        assert direction.mean_rank >= guessed.mean_rank
        assert all(direction.recall_at[k] <= guessed.recall_at[k] for k in (1, 5, 10))


def test_one_tie_costs_one_rank() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    metrics = retrieval_metrics(images, texts, torch.tensor([0, 1]), ["a", "b"])
    assert metrics.image_to_text.mean_rank == 2.0  # both texts tie for both images
    assert metrics.text_to_image.mean_rank == 1.5  # "a" finds image 0, "b" finds it too


def test_repeated_caption_is_right_for_each_of_its_images() -> None:
    # Both images are described by "twin"; each text embedding lies on the other's image.
    images, texts = torch.eye(2), torch.eye(2).flip(0)
    same = retrieval_metrics(images, texts, torch.tensor([0, 1]), ["twin", "twin"])
    different = retrieval_metrics(images, texts, torch.tensor([0, 1]), ["one", "other"])
    for direction in ("image_to_text", "text_to_image"):
        assert getattr(same, direction).recall_at[1] == 1.0
        assert getattr(different, direction).recall_at[1] == 0.0


@pytest.mark.parametrize("elements", [1, 64, 1000])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    case = random_case(37, 2, 50)
    whole = retrieval_metrics(*case)
    monkeypatch.setattr(retrieval, "CHUNK_ELEMENTS", elements)
    assert retrieval_metrics(*case) == whole


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = []
    real = RightAnswers.mask

    def spy(self: RightAnswers, start: int, stop: int) -> torch.Tensor:
        blocks.append((stop - start) * self.num_texts)
        return real(self, start, stop)

    monkeypatch.setattr(RightAnswers, "mask", spy)
    monkeypatch.setattr(retrieval, "CHUNK_ELEMENTS", 500)
    retrieval_metrics(*random_case(50, 2, 60))
    assert max(blocks) <= 500


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_refuses_what_is_not_finite(value: float, side: int) -> None:
    case = list(random_case(10, 1, 100))
    case[side][3, 2] = value
    with pytest.raises(DataError, match=f"{('image', 'text')[side]} embeddings: 1 of 10 .* NaN or infinite"):
        retrieval_metrics(*case)


def test_refuses_nothing_at_all() -> None:
    with pytest.raises(DataError, match="image embeddings: there are none"):
        retrieval_metrics(torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), [])


@pytest.mark.parametrize(
    ("images", "texts", "image_of_text", "captions"),
    [
        (torch.eye(2), torch.eye(3), torch.arange(3), ["a", "b", "c"]),
        (torch.eye(2), torch.eye(2), torch.arange(2), ["a"]),
        (torch.eye(2), torch.eye(2), torch.tensor([0, 2]), ["a", "b"]),
        (torch.eye(2), torch.eye(2), torch.tensor([-1, 0]), ["a", "b"]),
        (torch.eye(2), torch.eye(2), torch.arange(1), ["a", "b"]),
        (torch.ones(2), torch.eye(2), torch.arange(2), ["a", "b"]),
    ],
)
def test_refuses_shapes_that_do_not_fit(
    images: torch.Tensor, texts: torch.Tensor, image_of_text: torch.Tensor, captions: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"."):
        retrieval_metrics(images, texts, image_of_text, captions)


def test_right_answers_agree_with_their_counts() -> None:
    _, _, image_of_text, captions = random_case(30, 3, 20)
    right = RightAnswers(image_of_text, captions, 30)
    mask = right.mask(0, 30)
    assert torch.equal(right.texts_per_image(), mask.sum(dim=1))
    assert torch.equal(right.images_per_text(), mask.sum(dim=0))
    for group in range(len(right.distinct)):
        assert torch.equal(right.images_of(group), mask[:, captions.index(right.distinct[group])])
