"""Folders of coloured squares and indices of them, for several tests."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

from PIL import Image

from impresa.config.encoder import Modality
from impresa.run_dir.load import load_embedder, read_run_config
from impresa.search.opening import open_readers, source_names
from impresa.search.update import Updated, update_index
from impresa.tasks.alignment.embedder import EmbeddingModel
from shared_folder import shared_folder
from tiny_run import copy_of_run, finished_run


@cache
def tiny_model() -> EmbeddingModel:
    return load_embedder(finished_run(), "cpu")


@cache
def matryoshka_run() -> Path:
    """The run as if it had been trained with prefixes of 8 and 4 numbers; not to be changed."""
    folder = shared_folder()
    run = copy_of_run(folder / "run")
    config = run / "config.yaml"
    prefixes = "use_mrl: {}\n  mrl_dimensions:\n  - {}\n"
    of_shapes = prefixes.format("false", "256\n  - 128\n  - 64")
    assert of_shapes in config.read_text()
    config.write_text(config.read_text().replace(of_shapes, prefixes.format("true", "8\n  - 4"), 1))
    return run


def square(path: Path, number: int, side: int = 24) -> None:
    """A picture whose colour says which it is."""
    colour = tuple(int(255 * share) for share in colorsys.hsv_to_rgb(number / 40, 1, 1 - number % 3 / 4))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side + number), colour).save(path)


def squares(folder: Path, count: int = 12) -> Path:
    """0.png, sub/1.png, 2.png and so on, without captions."""
    for number in range(count):
        square(folder / ("sub" if number % 2 else ".") / f"{number}.png", number)
    return folder


def table(folder: Path, count: int = 12) -> Path:
    """The same with a table of captions, labels and other columns."""
    squares(folder, count)
    rows = []
    for number in range(count):
        name = f"{'sub/' if number % 2 else ''}{number}.png"
        row = {"image": name, "caption": f"square {number}", "label": "odd" if number % 2 else "even"}
        rows.append({**row, "year": 2000 + number, "price": number / 2, "path": f"shop {number}", "tags": ["a"]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def indexed(
    index: Path | str,
    *sources: Path | str,
    modalities: tuple[Modality, ...] = ("image",),
    run: Path | None = None,
    model: Callable[[], EmbeddingModel] = tiny_model,
) -> Updated:
    """Make an index, or bring it up to date."""
    run = run or finished_run()
    names = source_names(map(str, sources))
    readers = lambda: open_readers(read_run_config(run), names, modalities)  # noqa: E731
    return update_index(str(index), run, readers, model, modalities=modalities, batch_size=4)
