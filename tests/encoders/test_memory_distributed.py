"""Memory on two processes equals memory on one: the state, the reset and the start from features."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from impresa.config.experiment import MemoryConfig
from impresa.encoders.memory import MemoryTokens

N, D, M = 6, 16, 5
STEPS = 5
INITS = ("learnable", "features")
PARTS = {0: (slice(0, 3), slice(3, 5)), 1: (slice(5, 9), slice(9, 10))}
"""Rows of the global batch of ten that each rank sees, in two micro-batches of unequal size."""


def build(memory_init: str) -> MemoryTokens:
    torch.manual_seed(0)
    config = MemoryConfig(
        enabled=True, dim=12, num_memory_tokens=M, memory_init=memory_init, mem_reinit_steps=3, memory_momentum=0.7
    )
    return MemoryTokens(config, D, 4).double()


def batch(step: int) -> torch.Tensor:
    return torch.randn(10, N, D, generator=torch.Generator().manual_seed(step)).double()


def run_rank(rank: int, folder: str) -> None:
    code = 1
    try:
        torch.set_num_threads(1)
        distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
        for memory_init in INITS:
            torch.save(train(rank, build(memory_init)), f"{folder}/{memory_init}{rank}.pt")
        distributed.barrier()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Leaving the usual way aborts now and then in gloo's threads.
        os._exit(code)


def train(rank: int, memory: MemoryTokens) -> dict[str, torch.Tensor]:
    model = DistributedDataParallel(memory)
    torch.manual_seed(100 + rank)
    for step in range(1, STEPS + 1):
        first, last = PARTS[rank]
        with model.no_sync():
            model(batch(step)[first]).sum().backward()
        model(batch(step)[last]).sum().backward()
        memory.commit(step)
    return memory.state_dict()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both ranks saved."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=run_rank, args=(rank, str(folder))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=120)
    assert [process.exitcode for process in ranks] == [0, 0]
    return folder


@pytest.mark.parametrize("memory_init", INITS)
def test_two_processes_equal_one(folder: Path, memory_init: str) -> None:
    two = [torch.load(folder / f"{memory_init}{rank}.pt", weights_only=True) for rank in range(2)]
    one = build(memory_init)
    if memory_init == "features":
        candidates = batch(1)[PARTS[0][0]].flatten(0, 1) @ one.write.weight.detach()
        chosen = torch.cdist(two[0]["tokens"], candidates)
        assert chosen.min(dim=1).values.max() < 1e-6  # rank 0 drew them
        one.tokens.data.copy_(two[0]["tokens"])
        one.initialised.fill_(True)
    for step in range(1, STEPS + 1):
        one(batch(step))
        one.commit(step)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two[0][name], value, rtol=1e-9, atol=1e-9, msg=name)
        torch.testing.assert_close(two[0][name], two[1][name], rtol=0, atol=0, msg=name)
