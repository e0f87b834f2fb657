"""The table of `docs/benchmarks.md`: what the stored runs found, beside what is promised.

    python benchmarks/summary.py

Reads `results/` and writes the table anew; a test compares the two, and holds each figure against its promise.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


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


PADDED, LONGEST = "transformers, padded to the context", 'transformers, padding="longest"'
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
    Figure("vision-language step, 4 layers: speed against full logits", "vlm_step", 2.3, faster(FULL, "4 layers")),
    Figure("the same: memory above the weights", "vlm_step", 2.5, smaller(FULL, "4 layers")),
    Figure("the same: speed against `logits_to_keep`", "vlm_step", 1.3, faster(KEPT, "4 layers")),
    Figure("generation, token 20 against token 200: Qwen", "generation", 1 / 1.5, steadiness("qwen")),
    Figure("the same with recursion", "generation", 1 / 1.5, steadiness("qwen with recursion")),
    Figure("the same with TRM", "generation", 1 / 1.5, steadiness("trm")),
)


def stored() -> list[Figure]:
    """The figures of the runs that are there."""
    return [figure for figure in FIGURES if figure.path.exists()]


def table() -> str:
    rows = [f"| {f.question} | {f.value:.2f} | {f.at_least:.2f} | `{f.file}.py` |" for f in stored()]
    return "\n".join(
        ["| how many times better | stored run | at least | script |", "| --- | ---: | ---: | --- |", *rows]
    )


def with_table(page: str) -> str:
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
