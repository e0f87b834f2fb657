"""The examination of a machine before a training: what is there, what is missing, and what will be slow.

python -m impresa.training.doctor BACKEND RANK WORLD_SIZE FILE    one of the processes that try to reach each other
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import distributed

from impresa import __version__
from impresa.config.experiment import ExperimentConfig
from impresa.config.runs import prepare
from impresa.data.sources import open_train_and_val, reading_of
from impresa.data.sources.base import BadSample
from impresa.decoders.quantization import hush_bitsandbytes
from impresa.errors import ImpresaError, reason_of
from impresa.run_dir.environment import PACKAGES, installed_version, num_cores
from impresa.training.distributed import device_type

State = Literal["ok", "slow", "fault"]
PATIENCE_S = 120
DISK_MIB, SLOW_DISK_MIB_S = 64, 50.0
REDUCED_MIB = 16
SAMPLES = 64
LEAST_SHARED_MIB = 256
"""Of /dev/shm, through which data workers hand over their batches."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: State
    """`fault` where a training would fail."""
    text: str


def examine(config: ExperimentConfig | None, folder: Path) -> Iterator[Finding]:
    """Look at the machine, at the folder where runs are written, and at an experiment's data and devices."""
    yield _versions()
    yield from _devices(config)
    yield _processes()
    yield _quantization(config)
    yield _disk(folder)
    yield from _workers(config)
    if config is not None:
        yield _data(config)


def _versions() -> Finding:
    found = {"impresa": __version__, "python": sys.version.split()[0], **{p: installed_version(p) for p in PACKAGES}}
    there = [f"{name} {version}" for name, version in found.items() if version]
    return Finding("versions", "ok", ", ".join([*there, f"CUDA {torch.version.cuda or 'none'}"]))


def _devices(config: ExperimentConfig | None) -> Iterator[Finding]:
    cores = f"{num_cores()} CPU cores, {torch.get_num_threads()} threads"
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    named = [f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in gpus]
    yield Finding("devices", "ok", ", ".join([*named, cores]))
    if not gpus and not torch.backends.mps.is_available():
        yield Finding("devices", "slow", "torch finds no GPU: models of `model=tiny` and small images train in reason")
    if gpus and not torch.cuda.is_bf16_supported():
        yield Finding("devices", "slow", "the GPU has no bfloat16: optimization.precision=16-mixed instead")
    if torch.get_num_threads() > num_cores():
        yield Finding("devices", "slow", "more threads than cores wait for each other; set OMP_NUM_THREADS")
    try:
        kind = None if config is None else device_type(config.trainer)
    except ImpresaError as error:
        yield Finding("devices", "fault", error.lines[0])
    else:
        if kind == "cpu" and gpus:
            yield Finding("devices", "slow", "trainer.accelerator=cpu leaves the GPU unused")


def _processes() -> Finding:
    """Whether processes reach each other: one for each GPU by NCCL, or two by gloo."""
    number = torch.cuda.device_count()
    backend, count = ("nccl", number) if number > 1 else ("gloo", 2)
    with tempfile.TemporaryDirectory(prefix="impresa-") as folder:
        words = [sys.executable, "-m", "impresa.training.doctor", backend]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        started = [
            subprocess.Popen(
                [*words, str(rank), str(count), f"{folder}/meeting"],
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]
        try:
            said = [process.communicate(timeout=PATIENCE_S) for process in started]
        except subprocess.TimeoutExpired:
            return Finding("processes", "fault", f"{count} do not reach each other by {backend} in {PATIENCE_S} s")
        finally:
            for process in started:
                process.kill()
    for process, (_, err) in zip(started, said, strict=True):
        if process.returncode:
            last = (err.strip().splitlines() or ["no message"])[-1]
            return Finding("processes", "fault", f"{count} do not reach each other by {backend} ({last[:200]})")
    speed = float(said[0][0].split()[-1])
    return Finding("processes", "ok", f"{count} reach each other by {backend}, {speed:,.0f} MiB/s of gradients")


def _reach_others(backend: str, rank: int, count: int, meeting: str) -> None:
    """Add up a tensor over the processes; the speed is printed."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    distributed.init_process_group(
        backend, init_method=f"file://{meeting}", rank=rank, world_size=count, timeout=timedelta(seconds=PATIENCE_S)
    )
    gradient = torch.ones(REDUCED_MIB * 2**18, device=device)
    distributed.all_reduce(gradient)
    begun, rounds = time.monotonic(), 4
    for _ in range(rounds):
        distributed.all_reduce(gradient)
    if gradient[0].item() != count ** (rounds + 1):
        raise ValueError("the sum over the processes is wrong")
    print(rounds * REDUCED_MIB / (time.monotonic() - begun), flush=True)  # noqa: T201
    distributed.barrier()
    os._exit(0)  # the usual way out aborts now and then


def _quantization(config: ExperimentConfig | None) -> Finding:
    wanted = config is not None and config.decoder is not None and config.decoder.is_quantized
    if find_spec("bitsandbytes") is None:
        text = "not installed (pip install bitsandbytes); decoder.load_in_4bit and load_in_8bit need it"
        return Finding("bitsandbytes", "fault" if wanted else "ok", text)
    hush_bitsandbytes()
    try:
        import bitsandbytes
    except Exception as error:  # its library may not fit the machine
        reason = " ".join(str(error).split())[:200]
        return Finding("bitsandbytes", "fault" if wanted else "ok", f"cannot be imported ({reason})")
    return Finding("bitsandbytes", "ok", bitsandbytes.__version__)


def _disk(folder: Path) -> Finding:
    """How fast a checkpoint would be written, and how many there is room for."""
    block = os.urandom(2**20)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            begun = time.monotonic()
            for _ in range(DISK_MIB):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            speed = DISK_MIB / (time.monotonic() - begun)
        free = shutil.disk_usage(folder).free / 2**30
    except OSError as error:
        return Finding("disk", "fault", reason_of(error))
    text = f"{folder}: {speed:,.0f} MiB/s, {free:,.0f} GiB free"
    if speed < SLOW_DISK_MIB_S:
        return Finding("disk", "slow", f"{text}; checkpoints will be slow: raise trainer.logging.save_interval")
    return Finding("disk", "ok", text)


def _workers(config: ExperimentConfig | None) -> Iterator[Finding]:
    shared = Path("/dev/shm")
    if shared.is_dir() and (free := shutil.disk_usage(shared).free / 2**20) < LEAST_SHARED_MIB:
        fix = "raise it (docker run --shm-size=8g), or dataset.num_workers=0"
        yield Finding("data workers", "slow", f"/dev/shm has {free:.0f} MiB; {fix}")
    if config is not None and config.dataset.num_workers == 0 and torch.cuda.is_available():
        yield Finding("data workers", "slow", "dataset.num_workers is 0: the GPU waits while images are read")


def _data(config: ExperimentConfig) -> Finding:
    """Open the data, and read some samples."""
    try:
        ready = prepare(config)
        train, val = open_train_and_val(ready.dataset, reading_of(ready))
        begun, num_bad = time.monotonic(), 0
        numbers = list(islice(range(0, len(train), max(len(train) // SAMPLES, 1)), SAMPLES))
        for number in numbers:
            try:
                train[number]
            except BadSample:
                num_bad += 1
        speed = len(numbers) / max(time.monotonic() - begun, 1e-9)
    except ImpresaError as error:
        return Finding("data", "fault", error.lines[0])
    text = f"{len(train):,} samples to train on, {len(val):,} to validate; {speed:,.0f} samples/s read by one process"
    if num_bad == len(numbers):
        return Finding("data", "fault", f"{text}; none of {num_bad} can be used: `impresa data check` says why")
    return Finding("data", "ok", text + (f"; {num_bad} of {len(numbers)} cannot be used" if num_bad else ""))


if __name__ == "__main__":
    _reach_others(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
