"""The pairs of equal and near-equal images and the distances of all that were compared, as files and as pictures."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from impresa.data.near_duplicates.groups import BIN_WIDTH, MOST_DIFFERENCE, NUM_BINS, Duplicates, Pair
from impresa.files import replacing, write_atomic
from impresa.foreign_text import printable

PAIRS, SUMMARY, PAIRS_PICTURE, HISTOGRAM_PICTURE = "pairs.csv", "duplicates.json", "pairs.png", "distances.png"
_MOST_DRAWN = 24
_SIDE_PX, _TEXT_PX, _GAP_PX, _COLUMNS = 120, 30, 12, 3
_LONGEST = 40
"""Letters of a name that is drawn."""


def write_duplicates(
    folder: Path, found: Duplicates, names: Sequence[str], picture: Callable[[int], Image.Image | None]
) -> None:
    """Write all pairs as csv, counts and the histogram as JSON, the histogram and the most different pairs as PNG.

    Args:
        folder: must be there.
        found: the duplicates.
        names: of the images, by number.
        picture: an image by number; None if it cannot be shown any more.
    """
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(("first", "second", "kind", "hash_bits", "difference"))
    for pair in found.pairs:
        table.writerow((names[pair.first], names[pair.second], pair.kind, pair.bits, pair.difference))
    write_atomic(folder / PAIRS, text.getvalue().encode("utf-8", "replace"))
    write_atomic(folder / SUMMARY, json.dumps(summary(found), indent=2) + "\n")
    write_histogram(folder / HISTOGRAM_PICTURE, found)
    if found.pairs:
        with replacing(folder / PAIRS_PICTURE) as temporary:
            draw_pairs(found, names, picture).save(temporary, "PNG")


def summary(found: Duplicates) -> dict[str, Any]:
    """Plain values: numbers of images, groups and pairs, and candidate pairs by difference."""
    kinds = Counter(pair.kind for pair in found.pairs)
    groups = found.members()
    return {
        "num_images": len(found.groups),
        "num_groups": len(groups),
        "num_images_in_groups": sum(map(len, groups)),
        "pairs": {kind: kinds[kind] for kind in ("bytes", "pixels", "near")},
        "num_compared": found.num_compared,
        "num_left_out": found.num_left_out,
        "most_difference": MOST_DIFFERENCE,
        "histogram": {"bin_width": BIN_WIDTH, "counts": found.histogram.tolist()},
    }


def most_telling(found: Duplicates, most: int = _MOST_DRAWN) -> list[Pair]:
    """The pairs to look at: the most different ones first."""
    return sorted(found.pairs, key=lambda pair: -pair.difference)[:most]


def draw_pairs(found: Duplicates, names: Sequence[str], picture: Callable[[int], Image.Image | None]) -> Image.Image:
    """The most different pairs side by side, with their names and how they differ."""
    pairs = most_telling(found)
    columns = min(_COLUMNS, len(pairs))
    width, height = 2 * _SIDE_PX + _GAP_PX, _SIDE_PX + 2 * _TEXT_PX
    rows = -(-len(pairs) // columns)
    sheet = Image.new("RGB", (columns * (width + _GAP_PX) + _GAP_PX, rows * (height + _GAP_PX) + _GAP_PX), "white")
    pen = ImageDraw.Draw(sheet)
    for place, pair in enumerate(pairs):
        left = _GAP_PX + place % columns * (width + _GAP_PX)
        top = _GAP_PX + place // columns * (height + _GAP_PX)
        for side, number in enumerate((pair.first, pair.second)):
            at = left + side * (_SIDE_PX + 4)
            pen.rectangle((at, top, at + _SIDE_PX, top + _SIDE_PX), fill="#dddddd")
            if (image := picture(number)) is not None:
                small = image.copy()
                small.thumbnail((_SIDE_PX, _SIDE_PX))
                sheet.paste(small, (at + (_SIDE_PX - small.width) // 2, top + (_SIDE_PX - small.height) // 2))
            pen.text((left, top + _SIDE_PX + 2 + 14 * side), drawable(names[number]), fill="black")
        how = f"{pair.kind}, difference {pair.difference:.1f}, {pair.bits} bits"
        pen.text((left, top + _SIDE_PX + 30), how, fill="#666666")
    return sheet


def drawable(text: str, longest: int = _LONGEST) -> str:
    """A text as the font that Pillow has can draw it, its end cut."""
    shown = printable(text).encode("latin-1", "replace").decode("latin-1")
    return shown if len(shown) <= longest else f"...{shown[3 - longest :]}"


def write_histogram(path: Path, found: Duplicates) -> None:
    """How far candidate pairs differ, and the bound below which they are near-equal, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    edges = BIN_WIDTH * np.arange(NUM_BINS)
    axes.bar(edges, found.histogram, width=BIN_WIDTH, align="edge", color="#2563eb")
    axes.axvline(MOST_DIFFERENCE, color="#d9730d", linestyle="--", label="near-equal up to here")
    axes.set_xlabel("difference of two images whose hashes are near (0 to 255)")
    axes.set_ylabel("pairs")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
