"""Memory tokens: the formulas, the running state and its clock, every choice."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from impresa.config.types import MemoryConfig, MemoryInit, MemoryUpdate
from impresa.encoders.memory import MemoryTokens

B, N, D, M, HEADS = 4, 6, 16, 5, 4


def build(**changes: object) -> MemoryTokens:
    config = MemoryConfig(**{"enabled": True, "dim": D, "num_memory_tokens": M, **changes})
    return MemoryTokens(config, D, HEADS).double()


def patches(num: int = B, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, N, D, generator=torch.Generator().manual_seed(seed)).double()


def read_out(memory: MemoryTokens, state: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """m (M, d) and r (B, M, d), written out head by head."""
    attention, dim = memory.attention, memory.config.dim
    m = memory.tokens + memory.slots + memory.config.mem_alpha * state
    query = attention.query(F.layer_norm(m, (dim,)))
    key, value = attention.key_value(F.layer_norm(memory.read(x), (dim,))).split(dim, dim=-1)
    parts = []
    for head in torch.arange(dim).view(attention.num_heads, -1):
        logits = torch.einsum("md,bnd->bmn", query[:, head], key[..., head]) / len(head) ** 0.5
        parts.append(logits.softmax(-1) @ value[..., head])
    return m, attention.out(torch.cat(parts, dim=-1))


def train_once(memory: MemoryTokens, step: int, *batches: torch.Tensor) -> None:
    memory.train()
    for x in batches:
        memory(x)
    memory.commit(step)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("dim", [D, 12])
def test_attention_is_its_formula(alpha: float, dim: int) -> None:
    memory, x = build(mem_alpha=alpha, dim=dim), patches()
    memory.state.normal_()
    m, r = read_out(memory, memory.state, x)
    torch.testing.assert_close(memory(x), memory.write(alpha * r + (1 - alpha) * m))


@pytest.mark.parametrize(("alpha", "start"), [(0.3, 0.3), (1.0, 0.99), (0.001, 0.01)])
def test_the_gate_starts_at_alpha(alpha: float, start: float) -> None:
    memory, x = build(memory_update="gated", mem_alpha=alpha), patches()
    memory.state.normal_()
    m, r = read_out(memory, memory.state, x)
    torch.testing.assert_close(memory(x), start * r + (1 - start) * m)


def test_the_gate_is_learned_and_differs_from_token_to_token() -> None:
    memory, x = build(memory_update="gated"), patches()
    torch.nn.init.normal_(memory.gate.weight)
    m, r = read_out(memory, memory.state, x)
    gate = ((memory(x) - m) / (r - m)).detach()
    torch.testing.assert_close(gate, gate[..., :1].expand_as(gate))
    assert gate[..., 0].std() > 0.05


@pytest.mark.parametrize(
    "changes", [{"memory_update": "static"}, {"mem_alpha": 0.0}, {"memory_update": "gated", "mem_alpha": 0.0}]
)
def test_static_tokens_are_the_learned_ones(changes: dict[str, object]) -> None:
    memory = build(**changes)
    train_once(memory, 100, patches())
    torch.testing.assert_close(memory(patches()), (memory.tokens + memory.slots).expand(B, -1, -1))
    assert not [name for name, _ in memory.named_buffers()]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("update", get_args(MemoryUpdate))
@pytest.mark.parametrize("init", get_args(MemoryInit))
def test_tokens_stay_distinct_and_each_learns(init: MemoryInit, update: MemoryUpdate, alpha: float) -> None:
    memory = build(memory_init=init, memory_update=update, mem_alpha=alpha, mem_reinit_steps=3)
    optimizer = torch.optim.SGD(memory.parameters(), lr=0.1)
    for step in range(1, 8):
        optimizer.zero_grad()
        memory(patches(seed=step)).pow(2).mean().backward()
        gradient = memory.tokens.grad
        assert gradient.norm(dim=-1).min() > 1e-9
        assert torch.linalg.matrix_rank(gradient) > 1
        optimizer.step()
        memory.commit(step)
    for out in memory(patches()):
        distance = torch.cdist(out, out) / out.norm(dim=-1).mean()
        assert distance[~torch.eye(M, dtype=torch.bool)].min() > 1e-2


@pytest.mark.parametrize(("dim", "num_heads"), [(16, 4), (12, 4), (18, 3), (7, 1)])
def test_heads_of_the_read_out_fit_its_width(dim: int, num_heads: int) -> None:
    memory = build(dim=dim)
    assert memory.attention.num_heads == num_heads
    assert memory(patches()).shape == (B, M, D)


# How the tokens start


def test_starts() -> None:
    assert build(dim=512, num_memory_tokens=64).tokens.std().item() == pytest.approx(0.02, rel=0.02)
    assert not build(memory_init="zeros").tokens.any()
    orthogonal = build(memory_init="orthogonal").tokens
    torch.testing.assert_close(orthogonal @ orthogonal.T, torch.eye(M).double(), atol=1e-6, rtol=0)
    assert build().slots.std().item() == pytest.approx(0.02, rel=0.3)


def rows_found(tokens: torch.Tensor, candidates: torch.Tensor) -> list[int]:
    distance = torch.cdist(tokens, candidates.flatten(0, 1))
    assert distance.min(dim=1).values.max() < 1e-6
    return distance.argmin(dim=1).tolist()


def test_features_are_different_patches_of_the_first_training_batch() -> None:
    memory, first = build(memory_init="features"), patches()
    memory.eval()(patches(seed=1))
    assert not memory.initialised
    memory.train()(first)
    assert len(set(rows_found(memory.tokens, first))) == M
    before = memory.tokens.clone()
    memory(patches(seed=2))
    torch.testing.assert_close(memory.tokens, before, rtol=0, atol=0)


def test_features_follow_the_seed() -> None:
    draws = []
    for seed in (0, 0, 1):
        memory = build(memory_init="features")
        torch.manual_seed(seed)
        memory(patches())
        draws.append(rows_found(memory.tokens, patches()))
    assert draws[0] == draws[1] != draws[2]


def test_features_of_a_batch_with_fewer_patches_than_tokens_are_repeated() -> None:
    memory = build(memory_init="features", num_memory_tokens=8)
    memory(patches(num=1))
    assert set(rows_found(memory.tokens, patches(num=1))) == set(range(N))


@pytest.mark.parametrize("dim", [12, 24])
@pytest.mark.parametrize("update", get_args(MemoryUpdate))
def test_features_of_another_width_enter_the_blocks_as_near_to_the_patches_as_it_allows(
    update: MemoryUpdate, dim: int
) -> None:
    memory = build(memory_init="features", dim=dim, memory_update=update)
    memory(patches())
    with torch.no_grad():
        weight = memory.write.weight  # semi-orthogonal: W W^T projects onto what a width of `dim` can reach
        reachable = patches() @ weight @ weight.T
        assert len(set(rows_found(memory.write(memory.tokens), reachable))) == M
    if dim > D:
        torch.testing.assert_close(reachable, patches(), rtol=1e-5, atol=1e-5)


def test_a_resumed_run_does_not_start_its_features_again() -> None:
    memory, resumed = build(memory_init="features"), build(memory_init="features")
    memory(patches())
    resumed.load_state_dict(memory.state_dict())
    resumed(patches(seed=3))
    torch.testing.assert_close(resumed.tokens, memory.tokens)


# The running state


def test_commit_moves_the_state_towards_the_mean_of_all_that_was_read() -> None:
    memory = build(memory_momentum=0.9)
    memory.state.normal_()
    start, big, small = memory.state.clone(), patches(5), patches(2, seed=1)
    _, r = read_out(memory, start, torch.cat([big, small]))
    memory(big)
    memory(small)
    torch.testing.assert_close(memory.state, start, rtol=0, atol=0)
    memory.commit(1)
    torch.testing.assert_close(memory.state, 0.9 * start + 0.1 * r.mean(0))
    after = memory.state.clone()
    memory.commit(2)
    torch.testing.assert_close(memory.state, after, rtol=0, atol=0)


def test_the_state_has_no_gradient() -> None:
    memory = build()
    train_once(memory, 1, patches())
    memory(patches()).sum().backward()
    assert not memory._sum.requires_grad  # or every pass since the last commit would stay in memory
    assert not memory.state.requires_grad


def test_evaluation_only_reads() -> None:
    memory = build()
    train_once(memory, 1, patches())
    state = memory.state.clone()
    memory.eval()(patches(seed=1))
    memory.commit(2)
    torch.testing.assert_close(memory.state, state, rtol=0, atol=0)
    memory.state.normal_()
    assert not torch.allclose(memory(patches()), build_with_zero_state(memory)(patches()))


def build_with_zero_state(memory: MemoryTokens) -> MemoryTokens:
    twin = copy.deepcopy(memory)
    twin.state.zero_()
    return twin


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_recomputed_pass_is_not_counted(use_reentrant: bool) -> None:
    plain, recomputed = build(), build()
    recomputed.load_state_dict(plain.state_dict())
    calls = []
    recomputed.register_forward_pre_hook(lambda *_: calls.append(1))
    for x in (patches(3), patches(5, seed=1)):
        plain(x).sum().backward()
        checkpoint(recomputed, x.requires_grad_(), use_reentrant=use_reentrant).sum().backward()
    assert len(calls) == 4
    assert recomputed._count == plain._count == 8
    plain.commit(1)
    recomputed.commit(1)
    torch.testing.assert_close(recomputed.state, plain.state)
    for a, b in zip(recomputed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_reset_comes_before_the_next_training_pass_and_never_before_an_evaluation() -> None:
    memory = build(mem_reinit_steps=2, memory_momentum=0.5)
    train_once(memory, 1, patches(seed=1))
    train_once(memory, 2, patches(seed=2))
    full = memory.state.clone()
    assert full.abs().max() > 0
    x = patches(seed=3)

    # an evaluation and a checkpoint between the steps see the state as it was trained
    m, r = read_out(memory, full, x)
    torch.testing.assert_close(memory.eval()(x), 0.5 * r + 0.5 * m)
    torch.testing.assert_close(memory.state_dict()["state"], full)

    # the next training pass, every micro-batch of it, sees zero, and so does the update
    m, r = read_out(memory, torch.zeros_like(full), x)
    for _ in range(2):
        torch.testing.assert_close(memory.train()(x), 0.5 * r + 0.5 * m)
    torch.testing.assert_close(memory.state, full, rtol=0, atol=0)
    memory.commit(3)
    torch.testing.assert_close(memory.state, 0.5 * r.mean(0))

    # and it happened once
    m, r_next = read_out(memory, memory.state, x)
    torch.testing.assert_close(memory(x), 0.5 * r_next + 0.5 * m)
    expected = 0.5 * memory.state + 0.5 * r_next.mean(0)
    memory.commit(4)
    torch.testing.assert_close(memory.state, expected)
    assert memory.reset_pending


def test_steps_without_images_keep_the_state_and_the_pending_reset() -> None:
    memory = build(mem_reinit_steps=2)
    train_once(memory, 1, patches())
    state = memory.state.clone()
    memory.commit(2)
    memory.commit(3)
    torch.testing.assert_close(memory.state, state, rtol=0, atol=0)
    assert memory.reset_pending
    train_once(memory, 5, patches())
    assert not memory.reset_pending


def test_zero_steps_never_reset() -> None:
    memory = build(mem_reinit_steps=0)
    for step in range(1, 101):
        memory.commit(step)
    assert not memory.reset_pending


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_resuming_equals_a_straight_run(stop: int) -> None:
    straight = build(mem_reinit_steps=3, memory_init="features")
    interrupted = copy.deepcopy(straight)
    for step in range(1, 8):
        for memory in (straight, interrupted):
            torch.manual_seed(step)
            train_once(memory, step, patches(seed=step))
        if step == stop:
            resumed = build(mem_reinit_steps=3, memory_init="features")
            resumed.load_state_dict(interrupted.state_dict())
            interrupted = resumed
    for name, value in straight.state_dict().items():
        assert torch.equal(value, interrupted.state_dict()[name]), name
