"""Two processes over gloo train as one process does that accumulates the batches of both."""

from __future__ import annotations

import csv
import multiprocessing
import os
import socket
import traceback
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import impresa
from impresa.training.run import train
from tiny_run import tiny_experiment

# Full batches only, and no dropout: its draws depend on the rank.
EVEN = (
    *("dataset.shapes.num_train=16", "trainer.epochs=2", "vision_encoder.drop_rate=0", "text_encoder.drop_rate=0"),
    *("vision_encoder.memory.mem_reinit_steps=3", "trainer.logging.log_interval=1", "trainer.checkpoint.save_top_k=1"),
)


def one_of_two(rank: int, port: int, folder: Path) -> None:
    """What a launcher would start as process `rank`."""
    code = 1
    try:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        os.environ.update(address, LOCAL_RANK=str(rank), NODE_RANK="0")
        config = tiny_experiment(
            *EVEN, "trainer.devices=2", "trainer.strategy=ddp", "trainer.accumulate_grad_batches=1"
        )
        train(config, folder / "run", command=[])
        torch.distributed.barrier()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # leaving the usual way aborts now and then in gloo's threads


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # what is imported here need not be imported there
    processes = [context.Process(target=one_of_two, args=(rank, port, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    return folder / "run"


def numbers(run_dir: Path) -> list[dict[str, float]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        names = {"step", "epoch", "train_loss", "lr", "val_loss", "gradient_norm", "val_image_to_text_recall_at_1"}
        return [{k: float(v) for k, v in row.items() if k in names and v} for row in csv.DictReader(file)]


def test_two_processes_equal_one_that_accumulates(run_of_two: Path, tmp_path: Path) -> None:
    one = train(tiny_experiment(*EVEN, "trainer.accumulate_grad_batches=2"), tmp_path / "one", command=[])
    alone, together = load_file(one / "model.safetensors"), load_file(run_of_two / "model.safetensors")
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-3, atol=1e-5, msg=name)
    assert numbers(run_of_two) == [pytest.approx(row, rel=1e-3, abs=1e-6) for row in numbers(one)]


def test_only_the_first_process_writes_and_the_run_is_whole(run_of_two: Path) -> None:
    assert (run_of_two / "report.html").exists()
    assert impresa.load(run_of_two, "cpu").encode_text("a red circle").shape == (16,)
    assert not list(run_of_two.rglob(".*.tmp"))
