"""Latent recursion: its formulas, what it sees, what it learns from, and its cache."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from torch import nn

from impresa.config.decoder import RecursionConfig
from impresa.decoders.causal_network import AttentionInputs
from impresa.decoders.context import CausalContext
from impresa.decoders.recursion import LatentRecursion, RecursionHead
from impresa.errors import ConfigError
from impresa.layers.norms import rms_normalise

D = 16
CONFIG = RecursionConfig(num_cycles=2, num_steps=2, num_rounds=2, num_layers=2, dropout=0.0)
DEPTHS = [
    *(replace(CONFIG, num_cycles=k, num_steps=n, num_rounds=r) for k, n, r in product((1, 3), (1, 2), (1, 2))),
    replace(CONFIG, recursive=False),
]


def _recursion(config: RecursionConfig = CONFIG, *, seed: int = 0, **settings: bool) -> LatentRecursion:
    torch.manual_seed(seed)
    return LatentRecursion(config, dim=D, num_heads=2, mlp_ratio=2.0, **settings)


def _context(mask: torch.Tensor) -> CausalContext:
    return CausalContext(mask, (mask.long().cumsum(1) - 1).clamp(min=0))


def _all_real(rows: int, length: int) -> CausalContext:
    return _context(torch.ones(rows, length, dtype=torch.bool))


def _sequence(rows: int = 3, length: int = 9, *, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, length, D, generator=torch.Generator().manual_seed(seed))


def _by_the_book(recursion: LatentRecursion, x: torch.Tensor, context: CausalContext) -> list[torch.Tensor]:
    """The formulas of the docstring, written out; no gradient goes into what the last cycle of a round starts from."""
    config, x = recursion.config, rms_normalise(x)
    inputs = AttentionInputs.of(context, recursion.head_dim)
    h, z = recursion.answer.expand_as(x), recursion.reasoning.expand_as(x)
    rounds = []
    for _ in range(config.num_rounds):
        for cycle in range(config.num_cycles):
            h, z = h.detach(), z.detach()
            seen = x if cycle == config.num_cycles - 1 else x.detach()
            for _ in range(config.num_steps):
                z = recursion.network(z + h + seen, inputs)
            h = recursion.network(h + z, inputs)
        rounds.append(h)
    return rounds


@pytest.mark.parametrize("config", DEPTHS[:-1], ids=str)
def test_states_and_gradients_follow_the_formulas(config: RecursionConfig) -> None:
    recursion, x = _recursion(config), _sequence().requires_grad_()
    parameters = [x, *recursion.parameters()]
    found = recursion(x, None, _all_real(3, 9))
    wanted = _by_the_book(recursion, x, _all_real(3, 9))
    assert len(found) == config.num_rounds
    weights = torch.randn(3, 9, D)
    gradients = torch.autograd.grad(sum((weights * h).sum() for h in found), parameters)
    wanted_gradients = torch.autograd.grad(sum((weights * h).sum() for h in wanted), parameters)
    for one, other in zip((*found, *gradients), (*wanted, *wanted_gradients), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_answers_have_the_scale_of_the_states_whatever_comes_in() -> None:
    rounds = _recursion()(100 * _sequence(), None, _all_real(3, 9))
    for answer in rounds:
        torch.testing.assert_close(answer.square().mean(-1), torch.ones(3, 9), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rounds[-1], _recursion()(_sequence(), None, _all_real(3, 9))[-1], rtol=1e-4, atol=1e-4)


def test_more_of_each_depth_changes_the_answer() -> None:
    answers = [_recursion(config)(_sequence(), None, _all_real(3, 9))[-1] for config in DEPTHS]
    for one, other in combinations(answers, 2):
        assert not torch.allclose(one, other, atol=1e-3)


def test_starts_are_fixed_buffers_that_are_saved() -> None:
    recursion = LatentRecursion(replace(CONFIG, num_layers=1), dim=2048, num_heads=2, mlp_ratio=0.01)
    assert {"answer", "reasoning"} <= set(recursion.state_dict())
    assert not {"answer", "reasoning"} & {name for name, _ in recursion.named_parameters()}
    for start in (recursion.answer, recursion.reasoning):
        assert start.abs().max() <= 2
        assert start.std().item() == pytest.approx(0.88, abs=0.05)
    assert not torch.equal(recursion.answer, recursion.reasoning)


def test_a_given_start_takes_the_place_of_the_fixed_one() -> None:
    recursion, x, context = _recursion(), _sequence(), _all_real(3, 9)
    fixed = recursion(x, None, context)[-1]
    given = recursion(x, recursion.answer.expand_as(x), context)[-1]
    recursion.answer = nn.init.trunc_normal_(torch.empty(D))
    assert not torch.allclose(recursion(x, None, context)[-1], fixed, atol=1e-3)
    # A given start is brought to the scale of the states, which the fixed one has only about.
    normal = rms_normalise(_sequence(seed=2))
    torch.testing.assert_close(recursion(x, 7 * normal, context)[-1], recursion(x, normal, context)[-1])
    assert not torch.allclose(given, recursion(x, normal, context)[-1], atol=1e-3)


def test_the_control_has_equal_parameters_and_passes_once() -> None:
    recursion, control = _recursion(), _recursion(replace(CONFIG, recursive=False))
    control.load_state_dict(dict(recursion.named_parameters()))  # strict: the same names, and no fixed start
    x, context = _sequence(), _all_real(3, 9)
    (answer,) = control(x, None, context)
    assert torch.equal(answer, recursion.network(rms_normalise(x), AttentionInputs.of(context, recursion.head_dim)))
    assert control.num_slots == CONFIG.num_layers


@pytest.mark.parametrize("config", DEPTHS, ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_no_position_sees_a_later_one_to_the_bit(config: RecursionConfig, padded: bool) -> None:
    recursion, x = _recursion(config), _sequence(2, 40)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[0, :5] = not padded
    for start in (None, x):
        before = recursion(x, start, _context(mask))
        for t in (8, 20, 38):
            changed = x.clone()
            changed[:, t + 1] += 1.0
            after = recursion(changed, None if start is None else changed, _context(mask))
            for one, other in zip(before, after, strict=True):
                assert torch.equal(one[:, : t + 1], other[:, : t + 1])
                assert not torch.equal(one[:, t + 1], other[:, t + 1])


@pytest.mark.parametrize("config", [CONFIG, DEPTHS[-1]], ids=["recursive", "plain"])
@pytest.mark.parametrize("hidden", [slice(0, 3), slice(3, 5), slice(6, 9)], ids=["left", "middle", "right"])
def test_masked_positions_change_nothing(config: RecursionConfig, hidden: slice) -> None:
    recursion, x = _recursion(config), _sequence()
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1:, hidden] = False
    before = recursion(x, None, _context(mask))[-1]
    assert before.isfinite().all()
    changed = torch.where(mask.unsqueeze(-1), x, 50.0)
    after = recursion(changed, None, _context(mask))[-1]
    assert torch.equal(before[mask], after[mask])
    # The same as without them.
    kept = mask[1]
    alone = recursion(x[1:, kept], None, _all_real(2, int(kept.sum())))[-1]
    torch.testing.assert_close(before[1:, kept], alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(before[:1], recursion(x, None, _context(mask))[-1][:1])


def test_only_distances_between_positions_matter() -> None:
    recursion, x, context = _recursion(), _sequence(), _all_real(3, 9)
    far = recursion(x, None, replace(context, position_ids=context.position_ids + 100))[-1]
    near = recursion(x, None, context)[-1]
    torch.testing.assert_close(far, near, rtol=1e-3, atol=1e-4)
    stretched = recursion(x, None, replace(context, position_ids=3 * context.position_ids))[-1]
    assert not torch.allclose(stretched, near, atol=1e-2)


@pytest.mark.parametrize("config", [CONFIG, DEPTHS[-1]], ids=["recursive", "plain"])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_reach_every_parameter(config: RecursionConfig, autocast: bool) -> None:
    recursion, x = _recursion(config), _sequence().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        answer = recursion(x, None, _all_real(3, 9))[-1]
        (answer.float() * _sequence(seed=3)).sum().backward()
    for name, parameter in (("x", x), *recursion.named_parameters()):
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_dropout_acts_in_training_alone() -> None:
    recursion, x, context = _recursion(replace(CONFIG, dropout=0.5)), _sequence(), _all_real(3, 9)
    assert not torch.equal(recursion(x, None, context)[-1], recursion(x, None, context)[-1])
    recursion.eval()
    assert torch.equal(recursion(x, None, context)[-1], _recursion()(x, None, context)[-1])


def test_recomputing_activations_keeps_few_and_changes_no_gradient() -> None:
    (gradients, kept), (recomputed, few) = (_gradients(activation_checkpointing=on) for on in (False, True))
    for one, other in zip(gradients, recomputed, strict=True):
        torch.testing.assert_close(one, other)
    assert few < kept / 5


def _gradients(*, activation_checkpointing: bool) -> tuple[tuple[torch.Tensor, ...], int]:
    """Gradients under dropout, and how many tensors the forward pass kept for them."""
    recursion = _recursion(replace(CONFIG, dropout=0.3), activation_checkpointing=activation_checkpointing)
    kept = []
    torch.manual_seed(5)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (kept.append(1), tensor)[1], lambda tensor: tensor):
        rounds = recursion(_sequence(), None, _all_real(3, 9))
    num_kept = len(kept)
    return torch.autograd.grad(sum(h.tanh().sum() for h in rounds), list(recursion.parameters())), num_kept


@pytest.mark.parametrize("config", [CONFIG, DEPTHS[-1]], ids=["recursive", "plain"])
@pytest.mark.parametrize("first_slot", [0, 3])
def test_reading_piece_by_piece_with_a_cache_is_reading_at_once(config: RecursionConfig, first_slot: int) -> None:
    from transformers import DynamicCache

    recursion, x = _recursion(config), _sequence()
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1, :3] = False
    whole, cache = _context(mask), DynamicCache()
    at_once = recursion(x, None, whole)[-1]
    pieces = []
    for start, end in ((0, 5), (5, 6), (6, 8), (8, 9)):
        positions = whole.position_ids[:, start:end]
        context = CausalContext(mask[:, :end], positions, cache, first_slot)
        pieces.append(recursion(x[:, start:end], None, context)[-1])
    torch.testing.assert_close(torch.cat(pieces, dim=1)[mask], at_once[mask], rtol=1e-4, atol=1e-5)
    lengths = [layer.get_seq_length() for layer in cache.layers]
    assert lengths == [0] * first_slot + [9] * recursion.num_slots


def test_each_pass_of_each_layer_has_a_slot() -> None:
    config = RecursionConfig(num_cycles=3, num_steps=2, num_rounds=2, num_layers=2, dropout=0.0)
    assert _recursion(config).num_slots == 2 * 3 * (2 + 1) * 2


def test_a_cache_that_cannot_grow_is_refused() -> None:
    from transformers import DynamicCache, Qwen2Config

    fixed = DynamicCache(config=Qwen2Config(num_hidden_layers=2))
    with pytest.raises(ConfigError, match=r"past_key_values: .* pass an empty DynamicCache\(\)"):
        _recursion()(_sequence(1, 2), None, replace(_all_real(1, 2), cache=fixed))


def test_heads_must_divide_the_width_into_even_parts() -> None:
    with pytest.raises(ConfigError, match=r"decoder\.num_heads: 16 heads do not divide the width 16 into even parts"):
        LatentRecursion(CONFIG, dim=16, num_heads=16, mlp_ratio=2.0)


def test_the_mlp_needs_a_hidden_width() -> None:
    with pytest.raises(ConfigError, match=r"decoder\.mlp_ratio: it leaves the MLP no hidden width"):
        LatentRecursion(CONFIG, dim=16, num_heads=2, mlp_ratio=0.01)


def test_rms_normalise_is_the_root_mean_square_norm() -> None:
    x = torch.cat([_sequence(), torch.zeros(3, 1, D)], dim=1)
    torch.testing.assert_close(rms_normalise(x), nn.functional.rms_norm(x, (D,), eps=1e-6))
    assert rms_normalise(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [CONFIG, DEPTHS[-1]], ids=["recursive", "plain"])
def test_recursion_head_starts_as_the_identity_and_learns(config: RecursionConfig, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head, h = RecursionHead(config, dim=24, mlp_ratio=2.0), (30 * torch.randn(2, 5, 24)).to(dtype)
    rounds = head(h, _all_real(2, 5))
    assert all(torch.equal(out, h) and out.dtype == dtype for out in rounds)
    weights = torch.randn(2, 5, 24)
    (rounds[-1].float() * weights).sum().backward()
    assert head.gate.grad is not None
    assert head.gate.grad.abs() > 0
    zeros = [name for name, parameter in head.named_parameters() if not parameter.any()]
    assert zeros == ["gate"]
    nn.init.constant_(head.gate, 0.1)
    head.zero_grad()
    rounds = head(h, _all_real(2, 5))
    assert not torch.equal(rounds[-1], h)
    (rounds[-1].float() * weights).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters() if parameter.grad is not None)
    assert not [name for name, parameter in head.named_parameters() if parameter.grad is None]


def test_recursion_head_adds_the_gated_norm_of_the_answer() -> None:
    torch.manual_seed(0)
    head, h, context = RecursionHead(CONFIG, dim=24, mlp_ratio=2.0), torch.randn(2, 5, 24), _all_real(2, 5)
    nn.init.constant_(head.gate, 0.3)
    answers = head.recursion(h, h, context)
    for out, answer in zip(head(h, context), answers, strict=True):
        torch.testing.assert_close(out, h + 0.3 * nn.functional.rms_norm(answer, (24,)))


@pytest.mark.parametrize(("dim", "heads"), [(896, 14), (2048, 32), (64, 1), (24, 1), (130, 1)])
def test_recursion_heads_are_64_wide_where_that_divides(dim: int, heads: int) -> None:
    head = RecursionHead(replace(CONFIG, num_layers=1), dim=dim, mlp_ratio=0.1)
    assert head.recursion.head_dim == dim // heads


def test_an_odd_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="width 15 is odd"):
        RecursionHead(CONFIG, dim=15)
