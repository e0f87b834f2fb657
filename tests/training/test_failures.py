"""Ends that are the machine's fault: one line each, with what helps and how to go on; nothing half-written."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from full_disk import files_of_at_most
from impresa.config import ExperimentConfig
from impresa.errors import CheckpointError, TrainingError
from impresa.run_dir.environment import is_finished
from impresa.training import run as run_module
from impresa.training.failures import explained
from impresa.training.run import train
from impresa.training.tensorboard import TensorBoardEvents
from tiny_run import dry_run_of, tiny_experiment, without_charts
from tiny_vlm import tiny_vlm

COMMAND = ["impresa", "train", "shapes"]
RESUME = r"`impresa train --output-dir '?\S+'? --resume` continues from the last checkpoint"
OFTEN = ("trainer.logging.save_interval=1", "trainer.logging.log_interval=1", "trainer.epochs=2")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    without_charts(monkeypatch)


def before(patch: pytest.MonkeyPatch, name: str, happens: Callable[[], object]) -> None:
    """Let something happen before each call of a function of `impresa.training`, `module.function`."""
    module_name, _, function = name.rpartition(".")
    module = importlib.import_module(f"impresa.training.{module_name}")
    real = getattr(module, function)

    def call(*given: Any, **named: Any) -> Any:
        happens()
        return real(*given, **named)

    patch.setattr(module, function, call)


def once_there_is_a_checkpoint(run: Path, happens: Callable[[], object]) -> Callable[[], None]:
    todo = [happens]

    def call() -> None:
        if todo and (run / "checkpoints" / "last.ckpt").exists():
            todo.pop()()

    return call


def half_files(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


@pytest.mark.parametrize("size", [200, 2_000, 10_000, 60_000])
def test_a_full_disk_is_one_line_and_the_run_starts_again(size: int, tmp_path: Path) -> None:
    """Of growing room: environment, config, tokenizer and checkpoint do not fit."""
    run = tmp_path / "run"
    config = tiny_experiment(*OFTEN, "trainer.max_steps=2")
    names = {200: "environment.json", 2_000: "config.yaml", 10_000: "tokenizer", 60_000: r"checkpoints/last\.ckpt"}
    line = rf"run/{names[size]}: File too large; raise the limit .*; there is no checkpoint yet, so start it anew$"
    with files_of_at_most(size), pytest.raises(TrainingError, match=line):
        train(config, run, command=COMMAND)
    assert half_files(run) == []
    assert is_finished(train(config, run, command=COMMAND))


@pytest.mark.parametrize(
    ("name", "size", "function"),
    [
        ("metrics.csv", 10, "loop.train_step"),
        ("checkpoints/last.ckpt", 50_000, "loop.train_step"),
        ("model.safetensors", 50_000, "finish.save_run"),
        ("evaluation/gallery.json", 10, "finish.save_evaluation"),
    ],
)
def test_a_disk_that_fills_later_is_one_line_and_the_run_resumes(
    name: str, size: int, function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = tmp_path / "run", tiny_experiment(*OFTEN, "trainer.max_steps=3", "trainer.logging.eval_interval=100")
    with ExitStack() as stack, monkeypatch.context() as patch:
        fills = once_there_is_a_checkpoint(run, lambda: stack.enter_context(files_of_at_most(size)))
        before(patch, function, fills)
        with pytest.raises(TrainingError, match=rf"run/{name}: File too large; raise the limit .*; {RESUME}$"):
            train(config, run, command=COMMAND)
    assert half_files(run) == []
    assert is_finished(train(config, run, command=COMMAND, resume=True))


def test_events_that_cannot_be_written_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A thread writes them: it must not print a traceback beside the line."""
    events = TensorBoardEvents(tmp_path / "events", 0)
    events.log(1, {"loss": 1.0})

    def log_and_close() -> None:
        with explained(tiny_experiment(), tmp_path), files_of_at_most(10):
            for step in range(2, 100):
                events.log(step, {"loss": 1.0})
            events.close(success=True)

    with pytest.raises(TrainingError, match=r"events: File too large; raise the limit .*; there is no checkpoint yet"):
        log_and_close()
    assert capfd.readouterr().err == ""


def test_a_run_that_is_deleted_while_it_is_trained_stays_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    before(monkeypatch, "loop.train_step", once_there_is_a_checkpoint(run, lambda: shutil.rmtree(run)))
    with pytest.raises(CheckpointError, match="run: was deleted while it was trained; nothing is left to resume"):
        train(tiny_experiment(*OFTEN), run, command=COMMAND)
    assert not run.exists()


def test_a_second_training_in_the_same_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, config = tmp_path / "run", tiny_experiment(*OFTEN, "trainer.max_steps=2")

    def second() -> None:
        child = os.fork()  # a process of its own; the lock is not its parent's gift
        if child == 0:
            code = 1
            try:
                run_module.claimed(run, config, resume=True).__enter__()
            except CheckpointError as error:
                code = 42 if f"run: is being trained by process {os.getppid()}" in str(error) else 2
            finally:
                os._exit(code)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    codes: list[int] = []
    before(monkeypatch, "loop.train_step", second)
    train(config, run, command=COMMAND)
    assert codes == [42, 42]
    assert not (run / ".lock").exists()


def test_a_data_worker_that_is_killed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_children: Callable[[], list[BaseProcess]]
) -> None:
    run = tmp_path / "run"

    def kill() -> None:
        # One alone: torch raises once for each loader that lost a worker, and the second time anywhere, even in pytest.
        own_children()[0].kill()

    before(monkeypatch, "loop.train_step", once_there_is_a_checkpoint(run, kill))
    config = tiny_experiment(*OFTEN[:2], "trainer.epochs=100", "dataset.num_workers=1")
    line = r"^data worker \d+ (was killed by signal Killed|has died), most often because memory ran out; use fewer"
    with pytest.raises(TrainingError, match=rf"{line} than dataset\.num_workers=1; {RESUME}$"):
        train(config, run, command=COMMAND)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("DataLoader worker (pid(s) 12, 13) exited unexpectedly", "data worker 12, 13 has died, most often because"),
        (
            "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit.",
            "data worker 12 was killed by signal Bus error, shared memory (/dev/shm) is full; use fewer than dataset.",
        ),
        (
            "DataLoader worker (pid 12) is killed by signal: Segmentation fault. ",
            "data worker 12 was killed by signal Segmentation fault, as by a library that crashes",
        ),
        (
            "unable to write to file </torch_12_34_0>: No space left on device (28)",
            "a data worker has died, shared memory (/dev/shm) is full; use fewer than dataset.num_workers=0, or 0",
        ),
    ],
)
def test_how_torch_says_that_a_worker_is_gone(message: str, line: str) -> None:
    with pytest.raises(TrainingError) as caught, explained(tiny_experiment()):
        raise RuntimeError(message)
    assert str(caught.value).startswith(line)


def test_a_worker_that_is_gone_while_a_checkpoint_is_written_is_told_all_the_same() -> None:
    fault = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 151872 vs 147664")
    fault.__context__ = RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")
    with (
        pytest.raises(TrainingError, match=r"^data worker 12 was killed by signal Killed"),
        explained(tiny_experiment()),
    ):
        raise fault


GPU = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which ..."
CPU = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.mark.parametrize(
    ("error", "start"),
    [
        (torch.OutOfMemoryError(GPU), "GPU memory ran out (2.50 GiB more were asked for); start anew with "),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "GPU memory ran"),
        (RuntimeError(CPU), "memory ran out; start anew with "),
        (MemoryError(), "memory ran out; start anew with "),
        (OSError(12, "Cannot allocate memory"), "memory ran out; start anew with "),
    ],
)
def test_memory_that_ran_out_is_one_line_with_what_helps(
    error: Exception, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise error

    config = tiny_experiment()
    before(monkeypatch, "timing.train_step", fails)  # first, for it takes its own from the other when it is imported
    before(monkeypatch, "loop.train_step", fails)
    for training in (lambda: train(config, tmp_path / "run", command=COMMAND), lambda: dry_run_of(config)):
        with pytest.raises(TrainingError) as caught:
            training()
        (line,) = caught.value.lines
        assert line.startswith(start)
        assert "dataset.batch_size (training.batch_size) below 4 (which has fewer negatives)" in line


def knobs(config: ExperimentConfig) -> str:
    with pytest.raises(TrainingError) as caught, explained(config):
        raise torch.OutOfMemoryError(GPU)
    return str(caught.value).partition("start anew with ")[2]


def test_only_settings_that_help_this_experiment_are_named() -> None:
    plain = tiny_experiment("dataset.batch_size=512")
    assert "below 512" in knobs(plain)
    named = (
        "vision_encoder.activation_checkpointing=true",
        "losses.row_chunk=256",
        "optimization.chunk_size=64",
    )
    assert "=bf16-mixed" in knobs(plain)
    assert all(name in knobs(plain) for name in (*named, "text_encoder.activation_checkpointing=true"))
    used = tiny_experiment("dataset.batch_size=512", *named)
    assert not any(name in knobs(used) for name in named)
    for size in ("dataset.image_size (training.data.image_size) below 64", "text_encoder.max_len (model.text.max_len)"):
        assert size in knobs(tiny_experiment("dataset.image_size=64"))
    assert "dataset.image_size" not in knobs(tiny_experiment("dataset.image_size=16"))  # two patches a side
    assert "dataset.questions_per_image below 3" in knobs(tiny_vlm("dataset.questions_per_image=3"))
    answering = knobs(tiny_vlm())
    assert "decoder.max_len below" in answering
    assert "questions_per_image" not in knobs(tiny_vlm("dataset.questions_per_image=1"))
    assert "trainer.accumulate_grad_batches above 1 in return" in answering
    assert "decoder.activation_checkpointing=true" in answering
    assert "losses" not in answering
    assert "text_encoder" not in answering


def test_a_model_is_shared_out_where_several_processes_train_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "fsdp" not in knobs(tiny_experiment())
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    assert "trainer.strategy=fsdp" in knobs(tiny_experiment())
    assert "fsdp" not in knobs(tiny_experiment("optimization.optimizer=muon"))  # which fsdp is refused with
    shared_out = knobs(tiny_experiment("trainer.strategy=fsdp", "dataset.batch_size=512"))
    assert "fsdp" not in shared_out
    assert "chunk_size" not in shared_out


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    for error in (KeyError("ours"), RuntimeError("size mismatch"), OSError("without a number")):
        with pytest.raises(type(error)) as caught, explained(tiny_experiment()):
            raise error
        assert caught.value is error


def test_nothing_goes_through_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert is_finished(train(tiny_experiment("trainer.max_steps=1"), tmp_path / "run", command=COMMAND))


def test_a_kept_error_keeps_no_data_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_children: Callable[[], list[BaseProcess]]
) -> None:
    def fail() -> None:
        raise ValueError("of a library")

    before(monkeypatch, "loop.train_step", fail)
    with pytest.raises(ValueError, match="of a library") as kept:
        train(tiny_experiment("dataset.num_workers=1"), tmp_path / "run", command=COMMAND)
    assert own_children() == []
    assert kept.value is not None
