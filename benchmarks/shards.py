"""Many small images in tar shards and in parquet: time to index and to begin, memory, and random against serial order.

    python benchmarks/shards.py [--format webdataset|parquet] [--output shards.json] [--quick]

100,000 JPEG files of 64 x 64 pixels in 100 shards, and the same rows in one parquet file with groups of 512. Each step
runs in a process of its own, as a worker does, and its resident memory at the end is told. Samples are read with their
image decoded, in the order of the files and in that of the sampler, from a warm disk; the two take turns. Seconds are
those of the processor, as in the other benchmarks: other programs take none of them.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from timing import command, store

from impresa.config.dataset import DatasetConfig
from impresa.data.sampler import shuffled_order
from impresa.data.sources import open_source

NUM_SAMPLES, NUM_SHARDS, NUM_READ = 100_000, 100, 4_000
QUICK = (200, 4, 100)
BATCH = 256
ROUNDS = 3
KINDS = ("webdataset", "parquet")


def samples(count: int) -> Iterator[tuple[bytes, str]]:
    """Images of noise, of which a few repeat with other captions: their number of bytes is what matters."""
    generator, images = np.random.default_rng(0), []
    for _ in range(min(count, 64)):
        file = io.BytesIO()
        coarse = Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(file, "JPEG")
        images.append(file.getvalue())
    return ((images[n % len(images)], f"the caption of image {n}") for n in range(count))


def write(folder: Path, count: int, num_shards: int) -> None:
    (folder / "webdataset").mkdir()
    rows, each = list(samples(count)), count // num_shards
    for shard in range(num_shards):
        with tarfile.open(folder / "webdataset" / f"{shard:04d}.tar", "w") as archive:
            for n in range(shard * each, (shard + 1) * each):
                for end, content in (("jpg", rows[n][0]), ("json", b"{}"), ("txt", rows[n][1].encode())):
                    member = tarfile.TarInfo(f"{n:08d}.{end}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    table = pa.table({"image": [image for image, _ in rows], "caption": [caption for _, caption in rows]})
    pq.write_table(table, folder / "parquet.parquet", row_group_size=512)


def config_of(folder: Path, kind: str) -> DatasetConfig:
    path = str(folder / (kind if kind == "webdataset" else "parquet.parquet"))
    return replace(DatasetConfig(), source=kind, train_path=path, val_path=path, image_size=64)  # type: ignore[arg-type]


def begin(folder: Path, kind: str, _: int) -> dict[str, float]:
    """Open the data and read a first batch."""
    start = time.process_time()
    source = open_source(config_of(folder, kind), "train")
    opened = time.process_time()
    order = shuffled_order(len(source), source.blocks(), np.random.default_rng(0))
    for index in order[:BATCH]:
        source[int(index)]
    end = time.process_time()
    return {"open_s": opened - start, "first_batch_s": end - start, "resident_mib": resident_mib()}


def read(folder: Path, kind: str, count: int) -> dict[str, float]:
    """Samples a second in either order, each the median of some rounds."""
    source = open_source(config_of(folder, kind), "train")
    orders = {
        "serial": np.arange(len(source)),
        "random": shuffled_order(len(source), source.blocks(), np.random.default_rng(0)),
    }
    speeds: dict[str, list[float]] = {name: [] for name in orders}
    for turn in range(ROUNDS + 1):
        for name, order in orders.items():
            start = time.process_time()
            first = turn * count % len(order)
            for index in order[first : first + count]:
                source[int(index)]
            speeds[name].append(len(order[first : first + count]) / (time.process_time() - start))
    found = {name: statistics.median(values[1:]) for name, values in speeds.items()}
    return {**found, "ratio": found["random"] / found["serial"], "resident_mib": resident_mib()}


def resident_mib() -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(status["VmHWM"].split()[0]) / 1024


def apart(work: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """The result of some work in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def here(work: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """The same without a process of its own, which takes seconds to start."""
    return work(*arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command(__doc__ or "")
    parser.add_argument("--format", choices=KINDS, help="measure this one alone")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    count, num_shards, num_read = QUICK if given.quick else (NUM_SAMPLES, NUM_SHARDS, NUM_READ)
    run = here if given.quick else apart
    figures: dict[str, Any] = {"samples": count, "shards": num_shards}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        write(folder, count, num_shards)
        if given.format != "parquet":
            figures["index_s"] = run(begin, folder, "webdataset", 0)["open_s"]
        for kind in [given.format] if given.format else KINDS:
            figures[kind] = {"start": run(begin, folder, kind, 0), "reading": run(read, folder, kind, num_read)}
    print(json.dumps(figures, indent=2))
    store(given.output, figures)


if __name__ == "__main__":
    main()
