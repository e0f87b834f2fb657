"""Searching by a funnel (a Matryoshka prefix first, the best anew by all numbers) against an exact flat search.

    python benchmarks/funnel.py [--trained | --index INDEX] [--output funnel.json] [--quick]

200,000 vectors of 512 numbers, 128 queries at a time, one thread. Ways:

* the funnel of `impresa search`, by the prefix and the shortlist that are fastest at a recall@10 of 0.99 or more;
* the exact search of `impresa search`;
* faiss's IndexFlatIP, tuned: with `distance_compute_blas_threshold = 1` it multiplies matrices at any batch size. It is
  left out, with a line, where faiss is missing (pip install faiss-cpu).

Where the vectors are from:

* --trained: a Matryoshka run of `shapes` of width 512 is trained here (prefixes of 32 to 256, six epochs), and
  encodes 200,000 other scenes; half of the queries are captions and half pictures of scenes that are not among them.
  Takes half an hour on a core.
* --index: those of an index of a trained Matryoshka run, whose captions are half of the queries.
* else they are drawn from a normal distribution whose variance falls by dimension as that of Matryoshka embeddings does
  (with the power -1), which is a model of them and no measurement. Takes a minute or two.
"""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from timing import command, measure, store
from torch import Tensor
from torch.nn import functional as F

from impresa.config import load_experiment
from impresa.config.dataset import ShapesConfig
from impresa.data.sources.shapes import ShapesSource
from impresa.run_dir.load import load_embedder
from impresa.search.bench import SHORTLISTS, queries_of
from impresa.search.index import open_index
from impresa.search.scan import exact_search, funnel_search
from impresa.tasks.alignment.embedder import EmbeddingModel
from impresa.training.run import train

TOP, WANTED = 10, 0.99


def drawn(number: int, width: int, batch: int) -> tuple[Tensor, Tensor]:
    """Vectors (N, E), and queries (B, E) near some of them, of length one, with a spectrum that decays."""
    torch.manual_seed(0)
    scale = torch.arange(1, width + 1) ** -0.5
    vectors = torch.randn(number, width) * scale
    queries = vectors[torch.randperm(number)[:batch]] + 0.5 * torch.randn(batch, width) * scale
    return F.normalize(vectors, dim=-1), F.normalize(queries, dim=-1)


@dataclass(frozen=True)
class Recipe:
    """Of the run that is trained, and what it encodes."""

    width: int = 512
    prefixes: tuple[int, ...] = (256, 128, 64, 32)
    overrides: tuple[str, ...] = ()

    def trained(self, folder: Path) -> EmbeddingModel:
        widths = (f"vision_encoder.embed_dim={self.width}", f"text_encoder.embed_dim={self.width}")
        prefixes = ("vision_encoder.use_mrl=true", f"vision_encoder.mrl_dimensions={list(self.prefixes)}")
        quiet = ("trainer.logging.tensorboard=false", "dataset.shapes.num_test=64", "trainer.accelerator=cpu")
        config = load_experiment("shapes", [*widths, *prefixes, *quiet, *self.overrides])
        return load_embedder(train(config, folder / "run", command=["benchmarks/funnel.py"]), "cpu")


QUICK = Recipe(64, (32, 16), ("trainer.max_steps=2", "dataset.batch_size=8", "dataset.shapes.num_train=16"))


def of_run(recipe: Recipe, number: int, batch: int) -> tuple[Tensor, Tensor]:
    """The same of a run that is trained for it, encoding scenes that it was not trained on."""
    with tempfile.TemporaryDirectory() as folder:
        model = recipe.trained(Path(folder))
    scenes = ShapesSource(ShapesConfig(num_train=number + batch, seed=1), "train", model.config.dataset.image_size)
    parts = [
        model.encode_image([scenes[place].image for place in range(start, min(start + 1000, number + batch // 2))])
        for start in range(0, number + batch // 2, 1000)
    ]
    images = torch.cat(parts)
    words = [scenes[place].captions[0] for place in range(number + batch // 2, number + batch)]
    return images[:number].contiguous(), torch.cat([images[number:], model.encode_text(words)])


def of_index(path: Path, batch: int) -> tuple[Tensor, Tensor]:
    """The same of an index."""
    index = open_index(path)
    return index.vectors(), torch.cat(list(queries_of(index, batch // 2).values()))[:batch]


def cheapest(queries: Tensor, vectors: Tensor, dims: list[int]) -> tuple[int, int, float]:
    """Width of the prefix, shortlist and recall of the fastest funnel that finds enough."""
    exact = exact_search(queries, vectors, TOP)[1]
    found = []
    for dim in dims:
        prefixes = F.normalize(vectors[:, :dim], dim=-1)
        for size in SHORTLISTS:
            work = partial(funnel, queries, prefixes, vectors, size)
            seconds, rows = min((timed(work) for _ in range(3)), key=lambda run: run[0])
            recall = (rows[:, :, None] == exact[:, None]).any(dim=1).float().mean().item()
            if recall >= WANTED:
                found.append((seconds, dim, size, recall))
                break  # a longer shortlist only takes longer
    if not found:
        raise SystemExit(f"no prefix reaches a recall of {WANTED}")
    return min(found)[1:]


def funnel(queries: Tensor, prefixes: Tensor, vectors: Tensor, size: int) -> tuple[Tensor, Tensor]:
    return funnel_search(queries, prefixes, lambda rows: vectors.index_select(0, rows), TOP, size)


def timed(work: Callable[[], tuple[Tensor, Tensor]]) -> tuple[float, Tensor]:
    """CPU seconds, and the rows that were found."""
    start = time.process_time()
    rows = work()[1]
    return time.process_time() - start, rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command(__doc__ or "")
    places = parser.add_mutually_exclusive_group()
    places.add_argument("--index", type=Path, help="an index that `impresa index` has made")
    places.add_argument("--trained", action="store_true", help="of a Matryoshka run that is trained here")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    number, width, batch = (20_000 if not args.trained else 600, 64, 8) if args.quick else (200_000, 512, 128)
    if args.trained:
        vectors, queries = of_run(QUICK if args.quick else Recipe(), number, batch)
    elif args.index is not None:
        vectors, queries = of_index(args.index, batch)
    else:
        vectors, queries = drawn(number, width, batch)
    width = vectors.shape[1]
    dim, size, recall = cheapest(queries, vectors, [width // 16, width // 8, width // 4, width // 2])
    prefixes = F.normalize(vectors[:, :dim], dim=-1)
    works = {
        "funnel": lambda: funnel(queries, prefixes, vectors, size),
        "exact": lambda: exact_search(queries, vectors, TOP),
    }
    try:
        faiss = importlib.import_module("faiss")
    except ImportError:
        print("faiss is missing and left out; pip install faiss-cpu")
    else:
        faiss.omp_set_num_threads(1)
        faiss.cvar.distance_compute_blas_threshold = 1
        flat = faiss.IndexFlatIP(width)
        flat.add(vectors.numpy())
        works["faiss flat"] = lambda: flat.search(queries.numpy(), TOP)
    costs = measure(works)
    print(f"{len(vectors):,} x {width}, {len(queries)} queries, prefix {dim}, shortlist {size}, recall@10 {recall:.4f}")
    for name, cost in costs.items():  # memory is not compared: torch knows nothing of what faiss takes
        rate, ratio = len(queries) / cost.seconds, cost.seconds / costs["funnel"].seconds
        spread = f"{cost.fastest_s * 1e3:.0f} to {cost.slowest_s * 1e3:.0f}"
        print(f"{name:10}  {cost.seconds * 1e3:5.0f} ms ({spread})  {rate:6,.0f} queries/s  funnel: {ratio:.2f} times")
    figures = {
        name: {"ms": cost.seconds * 1e3, "queries_per_s": len(queries) / cost.seconds} for name, cost in costs.items()
    }
    what = {
        "vectors": "of a trained run" if args.trained else "drawn" if args.index is None else "of an index",
        "dim": dim,
        "shortlist": size,
        "recall": recall,
    }
    store(args.output, {**what, **figures})


if __name__ == "__main__":
    main()
