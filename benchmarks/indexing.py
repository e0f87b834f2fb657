"""The cost of an index beside the embeddings in it, and of an update where little has changed.

    python benchmarks/indexing.py [--files 100000] [--output indexing.json] [--quick]

* Encoding: `model.encode_image` of JPEG files of 640 x 480 pixels, by a run with CLIP's ViT-B/32 (random weights,
  224 pixels), against `impresa index` of the same files with the same batches: reading, hashing, decoding and encoding,
  thumbnails, rows in LanceDB, publishing. In turns, one thread.
* Updating: that many PNG files of 8 x 8 pixels are indexed by a run with the small model of the profile `shapes`, for
  which all but encoding weighs much; then 1% of them get another content. The update must embed these and look at no
  other file's content.

The clock is the process's CPU time, of all threads, those of LanceDB too. That of the disk is not in it, so the seconds
that pass are shown beside it. Takes about ten minutes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from timing import command, store

from impresa.config import load_experiment
from impresa.run_dir.load import load_embedder, read_run_config
from impresa.search import reading
from impresa.search.opening import open_readers, source_names
from impresa.search.update import Updated, update_index
from impresa.tasks.alignment.embedder import EmbeddingModel
from impresa.training.run import train

BATCH = 32
COMMON = (
    *("dataset.shapes.num_train=8", "dataset.shapes.num_val=4", "dataset.shapes.num_test=4", "dataset.batch_size=4"),
    *("trainer.max_steps=1", "trainer.epochs=1", "trainer.accelerator=cpu", "trainer.logging.tensorboard=false"),
    *("vision_encoder.memory.enabled=false", "optimization.warmup_epochs=0"),
)
B32 = (
    *("dataset.image_size=224", "vision_encoder.patch_size=32", "vision_encoder.dim=768", "vision_encoder.depth=12"),
    *("vision_encoder.num_heads=12", "vision_encoder.embed_dim=512", "text_encoder.embed_dim=512"),
)
TINY = (
    *("dataset.image_size=16", "vision_encoder.patch_size=8", "vision_encoder.dim=16", "vision_encoder.depth=1"),
    *("vision_encoder.num_heads=2", "vision_encoder.embed_dim=64", "text_encoder.embed_dim=64"),
)


@dataclass(frozen=True)
class Sizes:
    photographs: int = 256
    rounds: int = 3
    tower: tuple[str, ...] = B32
    small_tower: tuple[str, ...] = ()


QUICK = Sizes(8, 1, TINY, TINY)


def run_of(folder: Path, sizes: Sequence[str]) -> Path:
    """A run of one step, whose model has these sizes."""
    config = load_experiment("shapes", [*COMMON, *sizes])
    return train(config, folder, command=["benchmarks/indexing.py"])


def write_photographs(folder: Path, count: int) -> list[Path]:
    """Smooth noise."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 255, (24, 32, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number:06}.jpg", "JPEG", quality=90)
    return sorted(folder.iterdir())


def write_small(folder: Path, numbers: Sequence[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    for number in numbers:
        file = BytesIO()
        Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
        place = folder / f"{number // 1000:03}" / f"{number:06}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.getvalue())


def indexed(index: Path, run: Path, model: EmbeddingModel, folder: Path) -> Updated:
    config, names = read_run_config(run), source_names([str(folder)])
    readers = lambda: open_readers(config, names, ("image",))  # noqa: E731
    return update_index(str(index), run, readers, lambda: model, modalities=("image",), batch_size=BATCH)


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Of the processor, and that pass."""
    cpu, passed = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - passed


def beside_encoding(folder: Path, sizes: Sizes) -> dict[str, float]:
    """CPU seconds of both, medians, and what indexing adds as a share of encoding."""
    run = run_of(folder / "run", sizes.tower)
    model, files = load_embedder(run, "cpu"), write_photographs(folder / "photographs", sizes.photographs)
    found: dict[str, list[float]] = {"encode": [], "index": []}
    works = {"encode": lambda _: model.encode_image(files, batch_size=BATCH)}
    works["index"] = lambda number: indexed(folder / f"index {number}", run, model, folder / "photographs")
    for number in range(sizes.rounds + 1):
        for name in sorted(works, reverse=bool(number % 2)):
            found[name].append(seconds(lambda name=name, number=number: works[name](number))[0])  # type: ignore[misc]
    encode, index = (statistics.median(found[name][1:]) for name in ("encode", "index"))  # the first one warms up
    return {"encode_s": encode, "index_s": index, "share_added": index / encode - 1}


def update_of_one_percent(folder: Path, sizes: Sizes, count: int) -> dict[str, float]:
    """Seconds of the first time and of the update, and the files whose content the update has read."""
    run = run_of(folder / "small run", sizes.small_tower)
    model, files = load_embedder(run, "cpu"), folder / "small"
    write_small(files, range(count), seed=0)
    first = seconds(lambda: indexed(folder / "small index", run, model, files))
    changed = range(0, count, 100)
    write_small(files, changed, seed=1)
    read, done = set[str](), list[Updated]()
    as_it_is = reading.Reader.items

    def items(self: reading.Reader, index: int, stamp: str) -> list[reading.Item]:
        read.add(self.origin(index)[0])
        return as_it_is(self, index, stamp)

    with patch.object(reading.Reader, "items", items):
        update = seconds(lambda: done.append(indexed(folder / "small index", run, model, files)))
    assert done[0].embedded == len(read) == len(changed), (done[0], len(read))
    counts = {"files": count, "changed": len(changed), "read": len(read), "embedded": done[0].embedded}
    times = {"first_s": first[0], "update_s": update[0], "first_passed_s": first[1], "update_passed_s": update[1]}
    return {**counts, **times, "share": update[0] / first[0]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command(__doc__ or "")
    parser.add_argument("--files", type=int, default=100_000, help="of the update (default: %(default)s)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        sizes = QUICK if args.quick else Sizes()
        beside = beside_encoding(Path(name), sizes)
        update = update_of_one_percent(Path(name), sizes, 200 if args.quick else args.files)
    print(f"encoding {beside['encode_s']:.1f} s, indexing {beside['index_s']:.1f} s: {beside['share_added']:.1%} more")
    print(
        f"{update['files']:,} files: {update['first_s']:.1f} s of CPU time, {update['first_passed_s']:.1f} s passed; "
        f"1% changed: {update['update_s']:.1f} s, {update['update_passed_s']:.1f} s passed ({update['share']:.1%}); "
        f"{update['read']:,} files read"
    )
    store(args.output, {"beside_encoding": beside, "update": update})


if __name__ == "__main__":
    main()
