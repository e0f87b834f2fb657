"""Retrieval metrics against a brute-force reference, with ties, repeated captions, blocks and broken embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from impresa.errors import DataError
from impresa.evaluation import retrieval
from impresa.evaluation.results import RetrievalMetrics
from impresa.evaluation.retrieval import RightAnswers, chance, metrics_of_texts, retrieval_metrics

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]


def reference_ranks(
    images: torch.Tensor, texts: torch.Tensor, image_of_caption: list[int], captions: list[str]
) -> tuple[list[int], list[int]]:
    """Ranks in both directions by loops over float64 cosines; captions that read the same are one candidate."""
    vectors = [np.asarray(image, dtype=np.float64) for image in images]
    by_text = {}
    for caption, text in zip(captions, texts, strict=True):
        by_text.setdefault(caption, np.asarray(text, dtype=np.float64))
    known = [
        {c for c, i in zip(captions, image_of_caption, strict=True) if i == image} for image in range(len(vectors))
    ]

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))

    def rank(scores: list[float], right: list[bool]) -> int:
        best = max(score for score, is_right in zip(scores, right, strict=True) if is_right)
        return 1 + sum(score >= best - 1e-12 for score, is_right in zip(scores, right, strict=True) if not is_right)

    ranks_of_images = [
        rank([cosine(image, text) for text in by_text.values()], [text in known[i] for text in by_text])
        for i, image in enumerate(vectors)
        if known[i]
    ]
    ranks_of_captions = [
        rank([cosine(image, by_text[caption]) for image in vectors], [caption in texts for texts in known])
        for caption in captions
    ]
    return ranks_of_images, ranks_of_captions


def reference_by_torchmetrics(
    images: torch.Tensor, texts: torch.Tensor, image_of_caption: list[int], captions: list[str]
) -> list[dict[str, float]]:
    """MRR, mAP and NDCG in both directions, query by query, by torchmetrics; for scores without ties."""
    from torchmetrics.functional.retrieval import (
        retrieval_average_precision,
        retrieval_normalized_dcg,
        retrieval_reciprocal_rank,
    )

    functions = {
        "mrr": retrieval_reciprocal_rank,
        "mean_average_precision": retrieval_average_precision,
        "ndcg": retrieval_normalized_dcg,
    }
    names = list(dict.fromkeys(captions))
    unit_images, unit_texts = (torch.nn.functional.normalize(rows.double(), dim=1) for rows in (images, texts))
    # It takes what scores 0 or less for not found at all.
    scores = 2 + unit_images @ unit_texts[[captions.index(name) for name in names]].T
    target = torch.zeros(scores.shape, dtype=torch.long)
    for caption, image in zip(captions, image_of_caption, strict=True):
        target[image, names.index(caption)] = 1
    queries = (
        [(scores[i], target[i]) for i in range(len(images)) if target[i].any()],
        [(scores[:, g], target[:, g]) for g in map(names.index, captions)],
    )
    return [
        {name: float(np.mean([float(found(*query)) for query in side])) for name, found in functions.items()}
        for side in queries
    ]


def check_against_reference(
    images: torch.Tensor, texts: torch.Tensor, image_of_caption: torch.Tensor, captions: list[str]
) -> RetrievalMetrics:
    metrics = retrieval_metrics(images, texts, image_of_caption, captions)
    expected = reference_ranks(images, texts, image_of_caption.tolist(), captions)
    for direction, ranks in zip((metrics.image_to_text, metrics.text_to_image), expected, strict=True):
        assert direction.num_queries == len(ranks)
        assert direction.mean_rank == pytest.approx(np.mean(ranks), abs=1e-12)
        assert direction.median_rank == pytest.approx(np.median(ranks), abs=1e-12)
        for k in (1, 5, 10):
            assert direction.recall_at[k] == pytest.approx(np.mean(np.array(ranks) <= k), abs=1e-12)
    by_torchmetrics = reference_by_torchmetrics(images, texts, image_of_caption.tolist(), captions)
    for direction, values in zip((metrics.image_to_text, metrics.text_to_image), by_torchmetrics, strict=True):
        assert {name: getattr(direction, name) for name in values} == pytest.approx(values, abs=1e-6)
    return metrics


def random_case(num_images: int, texts_per_image: int, num_distinct: int) -> Case:
    generator = torch.Generator().manual_seed(0)
    image_of_caption = torch.arange(num_images).repeat_interleave(texts_per_image)
    images = torch.randn(num_images, 6, generator=generator)
    texts = images[image_of_caption] + torch.randn(len(image_of_caption), 6, generator=generator)
    drawn = torch.randint(num_distinct, (len(image_of_caption),), generator=generator)
    return images, texts, image_of_caption, [f"caption {i}" for i in drawn.tolist()]


@pytest.mark.parametrize("texts_per_image", [1, 3])
@pytest.mark.parametrize("num_distinct", [10_000, 25, 2])
def test_equals_the_reference(texts_per_image: int, num_distinct: int) -> None:
    check_against_reference(*random_case(40, texts_per_image, num_distinct))


def test_order_of_the_texts_and_images_without_text_do_not_matter() -> None:
    images, texts, image_of_caption, captions = random_case(30, 2, 40)
    shuffled = torch.randperm(len(captions), generator=torch.Generator().manual_seed(1))[:-7]
    case = (images, texts[shuffled], image_of_caption[shuffled], [captions[i] for i in shuffled.tolist()])
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
    for direction, guessed, num_wrong in (
        (metrics.image_to_text, guess.image_to_text, 29),
        (metrics.text_to_image, guess.text_to_image, 58),
    ):
        assert direction.mean_rank == 1 + num_wrong  # every wrong candidate ties
        assert direction.mean_rank >= guessed.mean_rank
        assert all(direction.recall_at[k] <= guessed.recall_at[k] for k in (1, 5, 10))


def test_chance_is_the_mean_over_all_orders() -> None:
    """Embeddings that mean nothing have the expected metrics on average, several right answers per query too."""
    generator = torch.Generator().manual_seed(0)
    image_of_caption = torch.arange(12).repeat_interleave(2)
    captions = [f"caption {i // 3}" for i in range(24)]
    right = RightAnswers(image_of_caption, captions, 12)
    names = ("mrr", "mean_average_precision", "ndcg", "mean_rank")
    found = []
    for _ in range(200):
        rows = [torch.randn(num, 40, generator=generator) for num in (12, len(right.texts))]
        metrics = metrics_of_texts(rows[0], rows[1], right)
        sides = (metrics.image_to_text, metrics.text_to_image)
        found.append([getattr(side, name) for side in sides for name in names])
    guess = chance(right)
    expected = [getattr(side, name) for side in (guess.image_to_text, guess.text_to_image) for name in names]
    assert np.mean(found, axis=0) == pytest.approx(expected, rel=0.04)


def test_ties_cost_every_right_answer() -> None:
    # Two right texts and two wrong ones, all alike: the right ones stand at places 3 and 4.
    metrics = retrieval_metrics(
        torch.eye(2), torch.tensor([[1.0, 1.0]] * 4), torch.tensor([0, 0, 1, 1]), ["a", "b", "c", "d"]
    ).image_to_text
    assert (metrics.mean_rank, metrics.mrr) == (3.0, pytest.approx(1 / 3))
    assert metrics.mean_average_precision == pytest.approx((1 / 3 + 2 / 4) / 2)
    ideal = 1 + 1 / np.log2(3)
    assert metrics.ndcg == pytest.approx((1 / np.log2(4) + 1 / np.log2(5)) / ideal)


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


@pytest.mark.parametrize("num_distinct", [60, 2])
def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, num_distinct: int) -> None:
    """No tensor over queries and candidates is larger than a chunk, also where a text is right for many images."""
    largest = 0

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            found = func(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor) and found.ndim == 2 and min(found.shape) > 6:
                largest = max(largest, found.numel())
            return found

    case = random_case(80, 4, num_distinct)
    monkeypatch.setattr(retrieval, "CHUNK_ELEMENTS", 1600)
    with Watch():
        retrieval_metrics(*case)
    assert 0 < largest <= 1600


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_refuses_what_is_not_finite(value: float, side: int) -> None:
    case = list(random_case(10, 1, 100))
    case[side][3, 2] = value
    with pytest.raises(DataError, match=f"{('image', 'text')[side]} embeddings: 1 of 10 .* NaN or infinite"):
        retrieval_metrics(*case)


def test_refuses_nothing_at_all() -> None:
    with pytest.raises(DataError, match="text embeddings: there are none"):
        retrieval_metrics(torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), [])


@pytest.mark.parametrize(
    ("images", "texts", "image_of_caption", "captions"),
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
    images: torch.Tensor, texts: torch.Tensor, image_of_caption: torch.Tensor, captions: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"."):
        retrieval_metrics(images, texts, image_of_caption, captions)


def test_right_answers_agree_with_their_counts() -> None:
    _, _, image_of_caption, captions = random_case(30, 3, 20)
    right = RightAnswers(image_of_caption, captions, 31)
    mask = right.mask(0, 31)
    assert mask.shape == (31, len(set(captions)))
    assert torch.equal(right.texts_per_image(), mask.sum(dim=1))
    assert torch.equal(right.images_per_caption(), mask.sum(dim=0)[right.text_of_caption])
    assert right.text_of_image() == {image: int(mask[image].nonzero()[0, 0]) for image in range(30)}
    for text in range(len(right.texts)):
        assert torch.equal(right.images_of(text), mask[:, text])


def test_repeated_captions_are_one_candidate() -> None:
    # Nine captions read the same wrong thing: they stand before the right one as one, not as nine.
    images, captions = torch.eye(10), ["wrong"] * 9 + ["right"]
    texts = torch.cat([images[9:].repeat(9, 1), images[9:] + 0.1 * images[:1]])
    metrics = retrieval_metrics(images, texts, torch.arange(10), captions)
    assert metrics.image_to_text.num_candidates == 2
    assert metrics.image_to_text.mean_rank == pytest.approx((9 * 2 + 2) / 10)
    assert metrics.text_to_image.num_queries == 10


def test_metrics_of_texts_refuses_other_numbers() -> None:
    right = RightAnswers(torch.arange(3), ["a", "a", "b"], 3)
    with pytest.raises(ValueError, match="for 3 images and 2 texts"):
        metrics_of_texts(torch.eye(3), torch.eye(3), right)
    assert metrics_of_texts(torch.eye(3), torch.eye(3)[:2], right).text_to_image.num_queries == 3
