"""All Matryoshka prefixes for less than the price of one loss: time and memory of a forward and a backward pass.

    python benchmarks/matryoshka.py [--output matryoshka.json] [--quick]

Six prefixes of 4096 at batch 1024, symmetric InfoNCE, float32, one thread. Peers:

* one InfoNCE per prefix in three forms: sentence-transformers' MatryoshkaLoss over MultipleNegativesRankingLoss in both
  directions; as open_clip writes the loss, with two products (image by text, text by image); and with a single product
  whose transpose is the other direction, as transformers writes it;
* one plain loss, at the full width only, with two products and with one.

Values and gradients, that of the logit scale too, are compared before anything is timed. Takes a minute or two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from timing import command, largest_difference, measure, report, store
from torch import Tensor, nn
from torch.nn import functional as F

from impresa.losses.clip import clip_loss
from impresa.losses.matryoshka import matryoshka_clip_loss

ROW_CHUNK = 256
TOLERANCE = 1e-5

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def two_products(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    target = torch.arange(len(a))
    return (F.cross_entropy(scale * a @ b.T, target) + F.cross_entropy(scale * b @ a.T, target)) / 2


@dataclass(frozen=True)
class Sizes:
    dims: tuple[int, ...] = (4096, 2048, 1024, 512, 256, 128)
    batch: int = 1024


QUICK = Sizes(dims=(64, 32, 16, 8, 4, 2), batch=300)


def per_prefix(loss: Loss, dims: Sequence[int]) -> Loss:
    return lambda a, b, scale: torch.stack([loss(a[:, :d], b[:, :d], scale) for d in dims]).mean()


def ours(dims: Sequence[int], row_chunk: int | None) -> Loss:
    return lambda a, b, scale: matryoshka_clip_loss(a, b, scale, dims, row_chunk=row_chunk).mean()


class Embeddings(nn.Module):
    """Stands for a SentenceTransformer whose forward pass costs nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["embedding"]}

    def get_embedding_dimension(self) -> int:
        return self.width


def sentence_transformers(dims: Sequence[int]) -> Loss:
    model = Embeddings(dims[0])
    ranking = MultipleNegativesRankingLoss(
        model, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    )
    matryoshka = MatryoshkaLoss(model, ranking, list(dims), [1 / len(dims)] * len(dims))

    def loss(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        ranking.scale = scale
        return matryoshka([{"embedding": a}, {"embedding": b}], torch.empty(0))

    return loss


def check_equal(losses: dict[str, Loss], inputs: Sequence[Tensor]) -> dict[str, float]:
    """Largest relative difference of value and gradients to the first loss; refuses to go on above `TOLERANCE`."""
    results = {name: (value := loss(*inputs), *torch.autograd.grad(value, inputs)) for name, loss in losses.items()}
    reference = next(iter(results.values()))
    return {name: largest_difference(result, reference, TOLERANCE) for name, result in results.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    given = command(__doc__).parse_args(arguments)
    sizes, repeats = (QUICK, 1) if given.quick else (Sizes(), 7)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Pairs that are somewhat alike, so that the losses are those of a model in training and not of noise.
    base = torch.randn(sizes.batch, sizes.dims[0])
    a, b = ((base + torch.randn_like(base)).requires_grad_() for _ in range(2))
    inputs = a, b, torch.tensor(1 / 0.07, requires_grad=True)

    losses = {
        "sentence-transformers": sentence_transformers(sizes.dims),
        "two products": per_prefix(two_products, sizes.dims),
        "one product": per_prefix(clip_loss, sizes.dims),
        "impresa": ours(sizes.dims, None),
        f"impresa, row_chunk {ROW_CHUNK}": ours(sizes.dims, ROW_CHUNK),
    }
    differences = check_equal(losses, inputs)
    losses |= {"plain loss, two products": two_products, "plain loss, one product": clip_loss}

    def forget_gradients() -> None:
        for x in inputs:
            x.grad = None

    works = {name: lambda loss=loss: loss(*inputs).backward() for name, loss in losses.items()}
    costs = measure(works, repeats=repeats, prepare=forget_gradients)
    title = f"Matryoshka {list(sizes.dims)} at batch {sizes.batch}, forward and backward"
    report(title, costs, [name for name in losses if not name.startswith("impresa")])
    print(f"largest relative difference of values and gradients: {max(differences.values()):.1e}")
    found = {name: asdict(cost) for name, cost in costs.items()}
    store(given.output, {"title": title, "costs": found, "differences": differences})


if __name__ == "__main__":
    main()
