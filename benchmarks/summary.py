"""The tables of `docs/benchmarks.md`: what the stored runs found, beside what is promised.

    python benchmarks/summary.py

Reads `results/` and writes the tables anew; a test compares the two, and holds each figure against its promise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import recursion

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
RECURSION = ("shapes_vqa_trm", "digits_vqa")


@dataclass(frozen=True)
class Figure:
    """A ratio of the stored runs."""

    question: str
    file: str
    at_least: float
    """The promise, of a ratio to the peer."""
    read: Callable[[dict[str, Any]], float]

    @property
    def path(self) -> Path:
        return RESULTS / f"{self.file}.json"

    @property
    def value(self) -> float:
        return self.read(json.loads(self.path.read_text()))


def faster(peer: str, *path: str, ours: str = "impresa") -> Callable[[dict[str, Any]], float]:
    return lambda run: _ratio(run, peer, path, ours, "seconds")


def smaller(peer: str, *path: str, ours: str = "impresa") -> Callable[[dict[str, Any]], float]:
    return lambda run: _ratio(run, peer, path, ours, "peak_bytes")


def _ratio(run: dict[str, Any], peer: str, path: tuple[str, ...], ours: str, what: str) -> float:
    for key in path:
        run = run[key]
    return run["costs"][peer][what] / run["costs"][ours][what]


def steadiness(decoder: str) -> Callable[[dict[str, Any]], float]:
    return lambda run: 1 / run["decoders"][decoder]["cached"]["ratio"]


def in_any_order(kind: str) -> Callable[[dict[str, Any]], float]:
    return lambda run: float(run[kind]["reading"]["ratio"])


def ratio(run: dict[str, Any]) -> float:
    return float(run["ratio"])


PADDED, LONGEST = "transformers, padded to the context", 'transformers, padding="longest"'
PACKED = "impresa, packing"
FULL, KEPT = "transformers, labels=", "transformers, logits_to_keep"
EACH, ALSO_EACH, PLAIN = "two products", "sentence-transformers", "plain loss, two products"
TILED = "impresa, row_chunk 256"
FIGURES = (
    Figure(
        "contrastive step, captions of 8 to 14 words: speed against CLIPModel padded to 77",
        "contrastive_step",
        2.0,
        faster(PADDED, "8 to 14 words"),
    ),
    Figure(
        'the same against `padding="longest"`',
        "contrastive_step",
        1.1,
        faster(LONGEST, "8 to 14 words"),
    ),
    Figure(
        "contrastive step with `optimization.packing`, captions of 8 to 14 words: speed against CLIPModel padded to 77",
        "contrastive_step",
        2.5,
        faster(PADDED, "8 to 14 words", ours=PACKED),
    ),
    Figure(
        'the same against `padding="longest"`',
        "contrastive_step",
        1.25,
        faster(LONGEST, "8 to 14 words", ours=PACKED),
    ),
    Figure(
        'the same with captions of 4 to 60 tokens, against `padding="longest"`',
        "contrastive_step",
        1.6,
        faster(LONGEST, "4 to 60 tokens", ours=PACKED),
    ),
    Figure(
        "contrastive step, captions that fill the context: speed against CLIPModel",
        "contrastive_step",
        1.1,
        faster(PADDED, "the whole context"),
    ),
    Figure(
        "six Matryoshka prefixes: speed against one InfoNCE for each, as open_clip writes it",
        "matryoshka",
        3.0,
        faster(EACH),
    ),
    Figure("the same: memory", "matryoshka", 4.5, smaller(EACH)),
    Figure("the same in tiles: speed", "matryoshka", 2.3, faster(EACH, ours=TILED)),
    Figure("the same in tiles: memory", "matryoshka", 6.0, smaller(EACH, ours=TILED)),
    Figure("six Matryoshka prefixes: speed against sentence-transformers", "matryoshka", 3.5, faster(ALSO_EACH)),
    Figure("the same: memory", "matryoshka", 4.5, smaller(ALSO_EACH)),
    Figure("the same in tiles: speed", "matryoshka", 2.7, faster(ALSO_EACH, ours=TILED)),
    Figure("the same in tiles: memory", "matryoshka", 6.0, smaller(ALSO_EACH, ours=TILED)),
    Figure(
        "six Matryoshka prefixes: speed against one plain loss, as open_clip writes it",
        "matryoshka",
        1.0,
        faster(PLAIN),
    ),
    Figure("the same: memory", "matryoshka", 1.0, smaller(PLAIN)),
    Figure(
        "step of a ViT-B/16 image tower, `patch_dropout` 0.5: speed against all patches",
        "patch_dropout",
        1.5,
        faster("patch dropout 0", ours="patch dropout 0.5"),
    ),
    Figure("the same: memory", "patch_dropout", 1.5, smaller("patch dropout 0", ours="patch dropout 0.5")),
    Figure(
        "contrastive batch of 1,024 in chunks of 64 (`optimization.chunk_size`): memory against the whole at once",
        "chunked_batch",
        4.0,
        lambda run: 1 / float(run["memory_share"]),
    ),
    Figure("the same: speed", "chunked_batch", 1 / 1.45, lambda run: 1 / float(run["time_ratio"])),
    Figure("`shapes` on two processes and two cores: samples a second against one of each", "two_cores", 1.4, ratio),
    Figure("model=large on two processes, `fsdp` against `ddp`: memory of each", "fsdp", 1 / 0.6, ratio),
    Figure("vision-language step, 4 layers: speed against full logits", "vlm_step", 2.3, faster(FULL, "4 layers")),
    Figure("the same: memory above the weights", "vlm_step", 2.5, smaller(FULL, "4 layers")),
    Figure("the same: speed against `logits_to_keep`", "vlm_step", 1.3, faster(KEPT, "4 layers")),
    Figure("generation, token 20 against token 200: Qwen", "generation", 1 / 1.5, steadiness("qwen")),
    Figure("the same with recursion", "generation", 1 / 1.5, steadiness("qwen with recursion")),
    Figure("the same with TRM", "generation", 1 / 1.5, steadiness("trm")),
    Figure(
        "tar shards in random order: samples a second against serial order", "shards", 0.9, in_any_order("webdataset")
    ),
    Figure("the same of parquet", "shards", 0.9, in_any_order("parquet")),
    Figure("JPEGs of 1024 x 768 to tensors of 224: speed against Pillow and torch", "decoding", 1.2, faster("plain")),
    Figure(
        "the same with `dataset.reduced_decode`",
        "decoding",
        2.0,
        faster("plain", ours="impresa, reduced_decode"),
    ),
    Figure(
        "epoch on kept features of a frozen ViT-B/32: samples a second against the first epoch",
        "cached_features",
        10.0,
        ratio,
    ),
    Figure(
        "search by a funnel among 200,000 embeddings of a trained run: speed against faiss, flat",
        "funnel-trained",
        2.5,
        lambda run: float(run["faiss flat"]["ms"] / run["funnel"]["ms"]),
    ),
    Figure(
        "`impresa index` with a ViT-B/32: speed against encoding alone",
        "indexing",
        1 / 1.1,
        lambda run: float(run["beside_encoding"]["encode_s"] / run["beside_encoding"]["index_s"]),
    ),
    Figure(
        "update of 1% of 100,000 tiny files, which cost next to nothing to embed: speed against the first time",
        "indexing",
        12.0,
        lambda run: 1 / run["update"]["share"],
    ),
    Figure(
        "`/v1/embeddings`, 64 clients with a picture each: throughput against `encode_image` in full batches",
        "serving",
        0.85,
        ratio,
    ),
)
LEARNED = (
    Figure("siglip against clip", "learning-siglip", 0.6, ratio),
    Figure("Matryoshka, an eighth of the width against the whole", "learning-matryoshka", 0.95, ratio),
    Figure("Perceiver against attention pooling, from scratch", "learning-perceiver", 0.85, ratio),
    Figure("the same on a frozen trained backbone", "learning-frozen", 0.95, ratio),
)


def table(title: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    rule = tuple("---" for _ in title)
    return "\n".join("| " + " | ".join(row) + " |" for row in (title, rule, *rows))


def tables() -> dict[str, str]:
    """Each table of the page, under the name of its place."""
    found = {}
    for name, figures in (("figures", FIGURES), ("learned", LEARNED)):
        unit = "how many times better" if figures is FIGURES else "R@1, the share kept"
        rows = ((f.question, f"{f.value:.2f}", f"{f.at_least:.2f}", f"`{f.file}`") for f in figures)
        found[name] = table((unit, "stored run", "at least", "stored in"), rows)
    for profile in RECURSION:
        title, *rows = recursion.rows(json.loads((RESULTS / f"recursion-{profile}.json").read_text()))
        found[profile] = table(title, rows)
    return found


def with_tables(page: str) -> str:
    for name, text in tables().items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}\n{text}\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
