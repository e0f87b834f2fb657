"""Memory on two processes equals memory on one: the state, the reset and the start from features."""

from __future__ import annotations

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from impresa.config.types import MemoryConfig
from impresa.encoders.memory import MemoryTokens
from two_processes import in_two_processes

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


def states(rank: int) -> dict[str, dict[str, torch.Tensor]]:
    return {memory_init: train(rank, build(memory_init)) for memory_init in INITS}


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
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    """The states of both ranks."""
    return in_two_processes(states, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("memory_init", INITS)
def test_two_processes_equal_one(ranks: list[dict], memory_init: str) -> None:
    two = [states_of_rank[memory_init] for states_of_rank in ranks]
    one = build(memory_init)
    if memory_init == "features":
        rows = torch.cat([batch(1)[PARTS[rank][0]] for rank in (0, 1)])
        candidates = rows.flatten(0, 1) @ one.write.weight.detach()
        chosen = torch.cdist(two[0]["tokens"], candidates)
        assert chosen.min(dim=1).values.max() < 1e-6  # rank 0 drew them, from the rows of both
        one.tokens.data.copy_(two[0]["tokens"])
        one.initialised.fill_(True)
    for step in range(1, STEPS + 1):
        one(batch(step))
        one.commit(step)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two[0][name], value, rtol=1e-9, atol=1e-9, msg=name)
        torch.testing.assert_close(two[0][name], two[1][name], rtol=0, atol=0, msg=name)
