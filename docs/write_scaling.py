"""Write the tables of docs/scaling.md about a run of 100 million pairs: `python docs/write_scaling.py`.

What stands between `<!-- reckoned -->` and `<!-- end reckoned -->` is made here, from the shipped models and the
assumptions below; a test compares the two.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from impresa.config import load_experiment
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.decoders.quantization import num_weights
from impresa.run_dir.cost import data_size, duration
from impresa.tasks.alignment.build import build_alignment
from impresa.training.exchange import Exchange, exchange
from impresa.training.memory import Memory
from impresa.training.peaks import peak_of

DOCS = Path(__file__).parent
PAGE = DOCS / "scaling.md"
BEGIN, END = "<!-- reckoned -->\n", "<!-- end reckoned -->\n"
GROUPS = ("tiny", "base", "large", "huge")

PAIRS, EPOCHS = 100_000_000, 10
GPUS = 64
BATCH = 512
"""Of a GPU; 32,768 in all."""
CHUNK = 64
GPU, MFU = "H100", 0.4
KIB_PER_PAIR = 30
"""A JPEG with a shorter side of 256 pixels, and its caption."""
SHARD_GIB = 1
NETWORK_GBS, DISK_GBS = 50, 1
"""Gigabytes per second of a GPU's share of the network, and of the disk."""
DECODED_PX, SMALL_PX = 1024 * 768, 342 * 256
CAPTION_TOKENS = 24
_FLOAT32, _MOMENTS = 4, 2
_ACTIVATION_BYTES = 34
"""Of a token, for each unit of width of each block, in 16 bits and without the matrix of attention (Korthikanti et al.
2022, arXiv:2205.05198)."""


@dataclass(frozen=True)
class Reckoned:
    """A run of one group of models."""

    parameters: int
    flops: float
    """Of a pair, forward and backward."""
    memory: Memory
    """Of one GPU, by ddp."""
    traffic: Exchange
    sharded_traffic: Exchange

    @property
    def pairs_per_second(self) -> float:
        """Of one GPU."""
        peak = peak_of(GPU)
        assert peak is not None
        return MFU * peak.bf16 * 1e12 / self.flops

    @property
    def checkpoint_bytes(self) -> int:
        return self.parameters * _FLOAT32 * (1 + _MOMENTS)


def experiment(group: str) -> ExperimentConfig:
    """A model of the group, trained on many GPUs with one batch in the loss."""
    settings = ("training.precision=bf16-mixed", "model.contrastive.gather_distributed=true")
    return load_experiment("default", [f"model={group}", *settings, f"training.batch_size={BATCH}"])


def reckon(config: ExperimentConfig) -> Reckoned:
    vision, text = config.vision_encoder, config.text_encoder
    with torch.device("meta"):
        parameters = num_weights(build_alignment(config, text.vocab_size, 0))
    patches = (config.dataset.image_size // vision.patch_size) ** 2
    lengths = {"image": 1 + patches + vision.memory.num_memory_tokens * vision.memory.enabled, "text": CAPTION_TOKENS}
    towers = {"image": vision, "text": text}
    in_patches = 3 * 2 * patches * 3 * vision.patch_size**2 * vision.dim
    flops = in_patches + sum(flops_of_blocks(tower, lengths[name]) for name, tower in towers.items())
    kept = CHUNK * max(_ACTIVATION_BYTES * lengths[name] * t.dim * t.depth for name, t in towers.items())
    size = parameters * _FLOAT32
    memory = Memory(weights=size, gradients=size, optimizer=_MOMENTS * size, average=0, activations=kept)
    traffic = (exchange(config, GPUS, weights=size, gradients=size, is_sharded=how) for how in (False, True))
    return Reckoned(parameters, flops, memory, *traffic)


def flops_of_blocks(tower: EncoderConfig, num_tokens: int) -> float:
    """Forward and backward pass of the blocks of a tower; the latter does twice the work of the former. The last block
    has keys and values of all tokens, and the rest of it of the one that is read."""
    products = (4 + 2 * tower.mlp_ratio) * tower.dim**2 + 2 * num_tokens * tower.dim
    return 3 * 2 * num_tokens * (products * (tower.depth - 1) + 2 * tower.dim**2)


def seconds_to_load() -> float:
    """Of a core for a pair: the decoding that benchmarks/decoding.py measured, by the number of pixels."""
    stored = json.loads((DOCS.parent / "benchmarks" / "results" / "decoding.json").read_text(encoding="utf-8"))
    return stored["costs"]["impresa"]["seconds"] / DECODED_JPEGS * SMALL_PX / DECODED_PX


DECODED_JPEGS = 8
"""Pictures in a round of benchmarks/decoding.py."""


def data_lines() -> Iterator[str]:
    size = PAIRS * KIB_PER_PAIR * 1024
    rate = 1 / seconds_to_load()
    yield "| data | | how it is known |\n| --- | --- | --- |"
    yield f"| size of {PAIRS // 10**6} million pairs of {KIB_PER_PAIR} KiB | {data_size(size)} | reckoned |"
    yield f"| shards of {SHARD_GIB} GiB | {math.ceil(size / (SHARD_GIB << 30)):,} | reckoned |"
    network = f"{data_size(EPOCHS * size)}, {data_size(size)}"
    yield f"| over the network in {EPOCHS} epochs, and where all copies are kept | {network} | reckoned |"
    yield f"| pairs that a core decodes in a second | {rate:,.0f} | measured by `benchmarks/decoding.py`, by pixels |"


def model_lines() -> Iterator[str]:
    found = {group: reckon(experiment(group)) for group in GROUPS}
    yield f"| | {' | '.join(f'`model={group}`' for group in GROUPS)} | how it is known |"
    yield f"| --- |{' --- |' * len(GROUPS)} --- |"

    def row(name: str, cells: Iterator[str], how: str) -> str:
        return f"| {name} | {' | '.join(cells)} | {how} |"

    each = found.values()
    sharded = {group: one.memory.divided(GPUS) for group, one in found.items()}
    steps = PAIRS / (BATCH * GPUS)
    yield row("parameters", (f"{one.parameters / 1e6:,.0f} M" for one in each), "counted here")
    yield row("GFLOP a pair", (f"{one.flops / 1e9:,.1f}" for one in each), "reckoned; a test compares")
    yield row("memory of a GPU, `ddp`", (data_size(one.memory.total) for one in each), "reckoned")
    yield row(f"the same, `fsdp` over {GPUS}", (data_size(one.total) for one in sharded.values()), "reckoned")
    yield row("of it activations", (data_size(one.memory.activations or 0) for one in each), "reckoned")
    yield row("gathered in a step", (data_size(one.traffic.all_gathered) for one in each), "reckoned; a test counts")
    yield row("sent by a GPU in a step, `ddp`", (data_size(one.traffic.sent(GPUS)) for one in each), "reckoned")
    yield row("the same, `fsdp`", (data_size(one.sharded_traffic.sent(GPUS)) for one in each), "reckoned")
    network = (duration(one.traffic.sent(GPUS) / (NETWORK_GBS * 1e9)) for one in each)
    yield row(f"its time at {NETWORK_GBS} GB/s, `ddp`", network, "reckoned")
    yield row("MFU", (f"{MFU:.0%}" for _ in each), "assumed, until `benchmarks/gpu.py` has a stored run")
    yield row("pairs/s of a GPU", (f"{one.pairs_per_second:,.0f}" for one in each), "reckoned")
    yield row("time of a step", (duration(BATCH / one.pairs_per_second) for one in each), "reckoned")
    epochs = (duration(EPOCHS * steps * BATCH / one.pairs_per_second) for one in each)
    yield row(f"time of {EPOCHS} epochs, if loaders keep up", epochs, "reckoned")
    workers = (f"{math.ceil(one.pairs_per_second * seconds_to_load()):,}" for one in each)
    yield row("loader processes for a GPU", workers, "reckoned")
    yield row("a checkpoint", (data_size(one.checkpoint_bytes) for one in each), "reckoned")
    written = (duration(one.checkpoint_bytes / (DISK_GBS * 1e9)) for one in each)
    yield row(f"its time at {DISK_GBS} GB/s", written, "reckoned")


def section() -> str:
    """The text between the marks."""
    return "\n".join((*data_lines(), "", *model_lines())) + "\n"


def page() -> str:
    """The page with the tables in their place."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{PAGE}: has no place for the tables; write {BEGIN.strip()} and {END.strip()} there")
    return f"{before}{BEGIN}{section()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
