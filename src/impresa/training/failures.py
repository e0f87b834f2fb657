"""Ends of a training that are the machine's fault, in one line: what happened, what helps, and how to go on."""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import distributed as dist

from impresa.config.encoder import has_trained_blocks, is_from_scratch
from impresa.config.experiment import ExperimentConfig, towers
from impresa.config.memory_vlm import both_names
from impresa.config.rules import beside_fsdp
from impresa.errors import ImpresaError, TrainingError, is_out_of_memory, reason_of, system_error
from impresa.run_dir.claim import how_to_go_on

_FIXES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room in your quota",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
}
_WORKER_DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([\w ]+)|exited)")
_SHARED_MEMORY = re.compile(r"shared memory\(shm\)|file </torch_|signal: Bus error")


@contextmanager
def explained(config: ExperimentConfig, run_dir: Path | None = None) -> Iterator[None]:
    """Raise a full disk, a killed data worker or memory that ran out as a `TrainingError`; `run_dir` is None where
    nothing is written."""
    before = threading.excepthook
    threading.excepthook = lambda args: None if isinstance(args.exc_value, OSError) else before(args)
    try:
        yield
    except ImpresaError:
        raise
    except Exception as error:
        line = _explanation(error, config, "" if run_dir is None else f"; {how_to_go_on(run_dir, config)}")
        if line is None:
            raise
        raise TrainingError(line) from error
    finally:
        threading.excepthook = before  # what a thread cannot write is raised by whoever gave it to the thread, too


def _explanation(error: Exception, config: ExperimentConfig, go_on: str) -> str | None:
    """The fault, its fix and how to go on; None for an error that is none of the machine's."""
    message = str(error)
    if (died := _death_of_a_worker(error)) is not None:
        return _worker_died(died, config) + go_on
    if is_out_of_memory(error):
        return _out_of_memory(message, config)  # a resumed run keeps its config, and would need as much again
    found = system_error(error)
    if found is None:
        return None
    fix = _FIXES.get(found.errno or 0)
    return f"{reason_of(found)}{f'; {fix}' if fix else ''}{go_on}"


def _death_of_a_worker(error: BaseException | None) -> re.Match[str] | None:
    """The words of torch for it, in an error or behind it. torch raises wherever the main process is; while that writes
    a checkpoint, another error follows."""
    while error is not None:
        message = str(error)
        if isinstance(error, RuntimeError) and (died := _WORKER_DIED.search(message) or _SHARED_MEMORY.search(message)):
            return died
        error = error.__context__
    return None


def _worker_died(found: re.Match[str], config: ExperimentConfig) -> str:
    pids, signal = found.groups() if found.re is _WORKER_DIED else (None, None)
    who = f"data worker {pids}" if pids else "a data worker"
    how = f"was killed by signal {signal.strip()}" if signal else "has died"
    fewer = f"use fewer than dataset.num_workers={config.dataset.num_workers}"
    if _SHARED_MEMORY.search(found.string):
        return f"{who} {how}, shared memory (/dev/shm) is full; {fewer}, or 0, which needs none"
    if signal and signal.strip() not in ("Killed", "Aborted"):
        return f"{who} {how}, as by a library that crashes or by a person; dataset.num_workers=0 works without"
    return f"{who} {how}, most often because memory ran out; {fewer}"


def _out_of_memory(message: str, config: ExperimentConfig) -> str:
    of_gpu = re.search(r"CUDA|CUBLAS|CUDNN|MPS|HIP", message)
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", message)
    where = "GPU memory" if of_gpu else "memory"
    size = f" ({asked[1]} more were asked for)" if asked else ""
    return f"{where} ran out{size}; start anew with {', '.join(_savings(config, bool(of_gpu)))}"


def _savings(config: ExperimentConfig, of_gpu: bool) -> Iterator[str]:
    """The settings that this experiment has not used yet, the most helpful first."""
    decoder, batch_size = config.decoder, config.dataset.batch_size
    chunk_size, is_shared_out = config.optimization.chunk_size, config.trainer.strategy == "fsdp"
    if decoder is None and batch_size >= 8 and chunk_size is None and not is_shared_out:
        yield f"optimization.chunk_size={batch_size // 8}"
    elif chunk_size is not None and chunk_size > 1:
        yield f"optimization.chunk_size below {chunk_size}"
    if batch_size > 1:
        yield f"{both_names('dataset.batch_size')} below {batch_size}{_to_keep_the_batch(config)}"
    if config.optimization.precision == "32-true":
        yield f"{both_names('optimization.precision')}=bf16-mixed in place of 32-true"
    parts: list[tuple[str, Any]] = [(name, tower) for _, name, tower in towers(config) if has_trained_blocks(tower)]
    for name, part in (*parts, *([("decoder", decoder)] if decoder else [])):
        if not part.activation_checkpointing:
            yield f"{name}.activation_checkpointing=true"
    if decoder is None and config.losses.row_chunk is None and batch_size > 256:
        yield "losses.row_chunk=256"
    yield from (f"{key} below {number}" for key, number in _sizes(config))
    if decoder is not None and decoder.is_pretrained:
        yield from () if decoder.use_lora else ("decoder.use_lora=true",)
        yield from () if decoder.is_quantized or not of_gpu or is_shared_out else ("decoder.load_in_4bit=true",)
    if not is_shared_out and dist.is_initialized() and dist.get_world_size() > 1 and not any(beside_fsdp(config)):
        yield "trainer.strategy=fsdp"
    if not of_gpu and config.dataset.num_workers:
        yield f"dataset.num_workers below {config.dataset.num_workers}"


def _sizes(config: ExperimentConfig) -> Iterator[tuple[str, int]]:
    """Sizes of a sample that a run may have smaller, of those that are its own to choose."""
    dataset, decoder, vision = config.dataset, config.decoder, config.vision_encoder
    if vision.checkpoint is None and is_from_scratch("image", vision) and dataset.image_size > 2 * vision.patch_size:
        yield both_names("dataset.image_size"), dataset.image_size
    if decoder is None:
        own = config.text_encoder.checkpoint is None
        yield from [(both_names("text_encoder.max_len"), config.text_encoder.max_len)] if own else ()
        return
    yield "decoder.max_len", decoder.max_len
    numbers = {
        "dataset.questions_per_image": dataset.questions_per_image,
        "dataset.max_images": dataset.max_images,
        "decoder.tiles": decoder.tiles,
    }
    yield from ((key, number) for key, number in numbers.items() if number > 1)


def _to_keep_the_batch(config: ExperimentConfig) -> str:
    """A smaller batch has fewer negatives; answers are learned alike from batches that are added up."""
    if config.decoder is None:
        return " (which has fewer negatives)"
    return f" and trainer.accumulate_grad_batches above {config.trainer.accumulate_grad_batches} in return"
