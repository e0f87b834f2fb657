"""The TRM decoder: causal at every depth, one loss for all rounds, scales, and its control."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from impresa.config.decoder import DecoderConfig, RecursionConfig
from impresa.decoders.base import IGNORED
from impresa.decoders.context import CausalContext
from impresa.decoders.trm import TRMDecoder
from impresa.errors import ConfigError

VOCABULARY, WIDTH, PREFIX = 37, 32, 5
RECURSION = RecursionConfig(num_cycles=2, num_steps=2, num_rounds=2, num_layers=2, dropout=0.0)
CONTROL = replace(RECURSION, recursive=False)
DEPTHS = [
    *(replace(RECURSION, num_cycles=k, num_steps=n, num_rounds=r) for k, n, r in product((1, 2, 3), (1, 3), (1, 2))),
    CONTROL,
]


def _decoder(recursion: RecursionConfig = RECURSION, **changes: int | float) -> TRMDecoder:
    torch.manual_seed(0)
    sizes = {"dim": WIDTH, "num_heads": 4, "mlp_ratio": 2.0, **changes}
    return TRMDecoder(DecoderConfig(type="trm", recursion=recursion, **sizes), VOCABULARY)


def _texts(rows: int = 3, length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))
    return ids, torch.ones_like(ids)


def _prefix(rows: int = 3, length: int = PREFIX) -> torch.Tensor:
    return torch.randn(rows, length, WIDTH, generator=torch.Generator().manual_seed(2))


def _logits(decoder: TRMDecoder, ids: torch.Tensor, mask: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
    logits = decoder(ids, mask, prefix).logits
    assert logits is not None
    return logits


@pytest.mark.parametrize("recursion", DEPTHS, ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_changing_a_token_leaves_the_logits_before_it_to_the_bit(recursion: RecursionConfig, training: bool) -> None:
    decoder = _decoder(recursion).train(training)
    ids, mask = _texts(length=30)
    mask[1, 25:] = 0
    before = _logits(decoder, ids, mask, _prefix())
    for t in (0, 9, 23):
        changed = ids.clone()
        changed[:, t + 1] = (ids[:, t + 1] + 1) % VOCABULARY
        after = _logits(decoder, changed, mask, _prefix())
        assert torch.equal(before[:, : PREFIX + t + 1], after[:, : PREFIX + t + 1])
        assert not torch.equal(before[:, PREFIX + t + 1], after[:, PREFIX + t + 1])


@pytest.mark.parametrize("recursion", [RECURSION, CONTROL], ids=["recursive", "plain"])
def test_the_prefix_is_seen_unless_it_is_masked(recursion: RecursionConfig) -> None:
    decoder, (ids, mask) = _decoder(recursion), _texts()
    prefix_mask = torch.ones(3, PREFIX, dtype=torch.bool)
    prefix_mask[0, 2] = False
    before = decoder(ids, mask, _prefix(), prefix_mask=prefix_mask).logits
    changed = _prefix()
    changed[:, 2] = -9.0
    after = decoder(ids, mask, changed, prefix_mask=prefix_mask).logits
    assert torch.equal(before[0, prefix_mask[0].nonzero().flatten()], after[0, prefix_mask[0].nonzero().flatten()])
    assert torch.equal(before[0, PREFIX:], after[0, PREFIX:])
    assert not torch.allclose(before[1:, PREFIX:], after[1:, PREFIX:], atol=1e-3)


def test_the_prefix_is_brought_to_the_scale_of_the_embeddings() -> None:
    decoder, (ids, mask) = _decoder(), _texts()
    logits = _logits(decoder, ids, mask, _prefix())
    torch.testing.assert_close(_logits(decoder, ids, mask, 1000 * _prefix()), logits, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        inputs = decoder.embed(ids)
    as_prefix = _logits(decoder, ids[:, :0], mask[:, :0], torch.cat([_prefix(), 7 * inputs], dim=1))
    torch.testing.assert_close(as_prefix, logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rounds", [1, 3])
def test_the_loss_is_the_mean_over_the_rounds(rounds: int) -> None:
    decoder, (ids, mask) = _decoder(replace(RECURSION, num_rounds=rounds)), _texts()
    labels = ids.masked_fill(torch.arange(12) < 8, IGNORED)
    labels[1, 10:] = IGNORED
    out = decoder(ids, mask, _prefix(), labels)
    joined = torch.cat([_prefix(), decoder.embed(ids)], dim=1)
    states = decoder.run(joined, CausalContext.of(torch.ones(3, PREFIX + 12, dtype=torch.bool)))
    assert len(states) == rounds
    targets = labels[labels != IGNORED]
    losses = [
        torch.nn.functional.cross_entropy(decoder.head(hidden)[:, PREFIX - 1 : -1][labels != IGNORED], targets)
        for hidden in states
    ]
    torch.testing.assert_close(out.loss, sum(losses) / rounds)
    assert torch.equal(out.hidden, states[-1])
    assert out.logits is None


@pytest.mark.parametrize("recursion", [RECURSION, CONTROL], ids=["recursive", "plain"])
def test_learns_an_answer_from_the_prefix_and_reaches_every_parameter(recursion: RecursionConfig) -> None:
    decoder = _decoder(replace(recursion, dropout=0.0))
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=5e-3)
    pictures = torch.randn(8, PREFIX, WIDTH)
    question = torch.tensor([1, 2, 3]).expand(8, 3)
    ids = torch.cat([question, torch.arange(10, 18).unsqueeze(1), torch.full((8, 1), 4)], dim=1)
    labels = ids.masked_fill(torch.arange(5) < 3, IGNORED)
    losses = []
    for _ in range(40):
        out = decoder(ids, torch.ones_like(ids), pictures, labels)
        assert out.loss is not None
        losses.append(out.loss.item())
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert losses[0] > 2
    assert losses[-1] < 0.1
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in decoder.parameters())


def test_the_control_has_the_same_parameters() -> None:
    sizes = [{name: p.shape for name, p in _decoder(config).named_parameters()} for config in (RECURSION, CONTROL)]
    assert sizes[0] == sizes[1]


def test_the_lm_head_is_tied_to_the_embeddings() -> None:
    decoder = _decoder()
    assert len([p for p in decoder.parameters() if VOCABULARY in p.shape]) == 1
    hidden = torch.randn(2, WIDTH)
    before = decoder.head(hidden)
    with torch.no_grad():
        decoder.embedding.weight[3] *= 2
        decoder.gain *= 3
    expected = before * 3
    expected[:, 3] *= 2
    torch.testing.assert_close(decoder.head(hidden), expected)


@pytest.mark.parametrize("changes", [{"dim": 64}, {"mlp_ratio": 3.0}, {"num_heads": 2}])
def test_each_size_changes_the_decoder(changes: dict[str, int | float]) -> None:
    before, after = _decoder(), _decoder(**changes)
    sizes = [[p.shape for p in decoder.parameters()] for decoder in (before, after)]
    if "num_heads" in changes:
        ids, mask = _texts()
        assert sizes[0] == sizes[1]
        assert not torch.allclose(_logits(before, ids, mask, _prefix()), _logits(after, ids, mask, _prefix()))
    else:
        assert sizes[0] != sizes[1]
    assert after.hidden_size == changes.get("dim", WIDTH)


def test_activation_checkpointing_is_passed_on() -> None:
    config = DecoderConfig(type="trm", dim=WIDTH, recursion=RECURSION, activation_checkpointing=True)
    assert TRMDecoder(config, VOCABULARY).recursion.activation_checkpointing
    assert not _decoder().recursion.activation_checkpointing


def test_a_tokenizer_beyond_the_upper_bound_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"decoder\.vocab_size: the tokenizer has 37 tokens, more than 36; raise it"):
        _decoder(vocab_size=36)
