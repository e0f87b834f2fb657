"""The cost of `impresa serve` beside the model: 64 clients at once, beside `encode_image` in full batches.

    python benchmarks/serving.py [--output serving.json] [--seconds 60] [--quick]

A run of a ViT-S/16 is trained for two steps, and served by the command itself. Each of the clients sends a JPEG of its
own, 640 x 480, again as soon as it has its answer, and compares the answer with what `encode_image` gives: an answer of
another client, or none, ends the benchmark. Before and after, `encode_image` embeds the same files in batches of 32 in
this process, with as many threads, while the server idles. The clients' own work counts for the server: they share
its processors. Takes four minutes.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timing import command, store

import impresa
from impresa.config import load_experiment
from impresa.tasks.alignment.embedder import EmbeddingModel
from impresa.training.run import train

CLIENTS, BATCH = 64, 32
TOLERANCE = 1e-5
SHORT = (
    *("dataset.shapes.num_train=32", "dataset.shapes.num_val=8", "dataset.shapes.num_test=8", "dataset.num_workers=0"),
    *("dataset.batch_size=16", "trainer.epochs=1", "optimization.warmup_epochs=0", "trainer.logging.tensorboard=false"),
    *("trainer.accelerator=cpu", "text_encoder.depth=2", "trainer.logging.eval_interval=100"),
)
SMALL = (
    *("dataset.image_size=224", "vision_encoder.patch_size=16", "vision_encoder.dim=384", "vision_encoder.depth=12"),
    "vision_encoder.num_heads=6",
)


def pictures(count: int) -> list[bytes]:
    """JPEGs of noise that a photograph's size and detail come near to."""
    found = []
    for number in range(count):
        drawn = np.random.default_rng(number)
        coarse = Image.fromarray(drawn.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
        found.append(file.getvalue())
    return found


@contextmanager
def serving(run: Path) -> Iterator[tuple[subprocess.Popen[str], str, float]]:
    """A server's process, its address, and the seconds until its first answer."""
    start = time.monotonic()
    words = [sys.executable, "-m", "impresa", "serve", str(run), "--port", "0", "--device", "cpu", "--name", "served"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-4]
        httpx.post(f"{address}/v1/embeddings", json={"input": "a red star"}, timeout=60).raise_for_status()
        first_s = time.monotonic() - start
        try:
            yield process, address, first_s
        finally:
            process.terminate()


async def load(address: str, files: Sequence[bytes], wanted: NDArray[np.float32], seconds: float) -> list[float]:
    """The latencies of all answers, in seconds; ends with a line where one is missing or wrong."""
    latencies: list[float] = []
    until = time.monotonic() + seconds

    async def client(number: int, session: httpx.AsyncClient) -> None:
        url = f"data:image/jpeg;base64,{base64.b64encode(files[number]).decode()}"
        body = json.dumps({"input": [url], "modality": "image", "encoding_format": "base64"}).encode()
        start = 0.0
        while start < until:
            start = time.monotonic()
            answer = await session.post("/v1/embeddings", content=body, headers={"Content-Type": "application/json"})
            if answer.status_code != httpx.codes.OK:
                raise SystemExit(f"client {number} got {answer.status_code}: {answer.text}")
            latencies.append(time.monotonic() - start)
            found = np.frombuffer(base64.b64decode(answer.json()["data"][0]["embedding"]), "<f4")
            if (difference := np.abs(found - wanted[number]).max()) > TOLERANCE:
                raise SystemExit(f"client {number} got an answer that differs by {difference:.1e}")

    limits = httpx.Limits(max_connections=len(files))
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits) as session:
        await asyncio.gather(*(client(number, session) for number in range(len(files))))
    return latencies


def encoded_per_s(model: EmbeddingModel, files: Sequence[bytes], seconds: float) -> float:
    """Pictures a second by `encode_image`."""
    start, number, took = time.monotonic(), 0, 0.0
    while took < seconds:
        model.encode_image(list(files), batch_size=BATCH)
        number += len(files)
        took = time.monotonic() - start
    return number / took


def resident_mib(process: subprocess.Popen[str]) -> float:
    """Memory of a process, from Linux's own count; 0 where there is none."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        return 0.0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command(__doc__ or "")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the load (default: %(default)s)")
    args = parser.parse_args(arguments)
    seconds, clients = (2.0, 8) if args.quick else (args.seconds, CLIENTS)
    files = pictures(clients)
    with tempfile.TemporaryDirectory() as folder:
        config = load_experiment("shapes", [*SHORT, *(() if args.quick else SMALL)])
        run = train(config, Path(folder) / "run", command=["impresa", "train", "shapes"])
        model = impresa.load(run, "cpu")
        assert isinstance(model, EmbeddingModel)
        wanted = model.encode_image(files, batch_size=BATCH, convert_to_numpy=True)
        with serving(run) as (process, address, first_s):
            asyncio.run(load(address, files, wanted, seconds / 6))  # warm
            before, before_mib = encoded_per_s(model, files, seconds / 4), resident_mib(process)
            start = time.monotonic()
            latencies = asyncio.run(load(address, files, wanted, seconds))
            served_per_s = len(latencies) / (time.monotonic() - start)
            after_mib, after = resident_mib(process), encoded_per_s(model, files, seconds / 4)
    ms = np.percentile(np.array(latencies) * 1000, [50, 99])
    encoded = statistics.mean((before, after))
    figures = {
        "clients": clients,
        "threads": torch.get_num_threads(),
        "answers": len(latencies),
        "lost_or_mixed_up": 0,
        "served_per_s": served_per_s,
        "encoded_per_s": encoded,
        "ratio": served_per_s / encoded,
        "p50_ms": float(ms[0]),
        "p99_ms": float(ms[1]),
        "resident_mib": {"before": before_mib, "after": after_mib},
        "first_answer_s": first_s,
    }
    print(f"{len(latencies)} answers to {clients} clients in {seconds:.0f} s, none lost or mixed up")
    print(f"{served_per_s:.1f} pictures/s served, {encoded:.1f} by encode_image: {figures['ratio']:.2f}")
    print(f"p50 {ms[0]:.0f} ms, p99 {ms[1]:.0f} ms; {before_mib:.0f} MiB before, {after_mib:.0f} after")
    print(f"first answer {first_s:.1f} s after the start")
    store(args.output, figures)


if __name__ == "__main__":
    main()
