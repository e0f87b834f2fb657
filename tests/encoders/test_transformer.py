"""Blocks: the fast path for one token, causality, dropout, checkpointing, start weights."""

from __future__ import annotations

import pytest
import torch

from impresa.config.encoder import EncoderConfig
from impresa.encoders.transformer import Transformer

B, N, D, H = 3, 7, 16, 4


def small(**changes: object) -> EncoderConfig:
    return EncoderConfig(**{"dim": D, "depth": 3, "num_heads": H, **changes})


def test_a_causal_token_never_sees_a_later_one() -> None:
    model, x = Transformer(small(), causal=True), torch.randn(B, N, D)
    changed = x.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(model(x)[:, :4], model(changed)[:, :4], rtol=0, atol=0)
    assert not torch.allclose(Transformer(small())(x)[:, :4], Transformer(small())(changed)[:, :4])


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_one_token_alone_equals_that_token_of_the_whole_with_its_gradients(causal: bool, depth: int) -> None:
    model, x = Transformer(small(depth=depth), causal=causal).double(), torch.randn(B, N, D).double()
    only, rows = torch.tensor([0, 6, 3]), torch.arange(B)
    weight = torch.randn(B, D).double()

    def gradients(y: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad((y * weight).sum(), list(model.parameters())))

    whole, alone = model(x)[rows, only], model(x, only=only).squeeze(1)
    torch.testing.assert_close(alone, whole)
    torch.testing.assert_close(gradients(alone), gradients(whole))


@pytest.mark.parametrize("switch", ["drop_rate", "attn_drop_rate"])
def test_dropout_acts_in_training_only(switch: str) -> None:
    model, plain, x = Transformer(small(**{switch: 0.3})), Transformer(small()), torch.randn(B, N, D)
    plain.load_state_dict(model.state_dict())
    assert not torch.allclose(model(x), plain(x), atol=1e-3)
    torch.testing.assert_close(model.eval()(x), plain(x))


def test_drop_rate_acts_on_attention_output_and_mlp() -> None:
    block, x = Transformer(small(drop_rate=0.99)).blocks[0], torch.randn(B, N, D)
    with torch.no_grad():
        block.attention.out.bias.fill_(1)
        block.mlp.down.bias.fill_(1)
    assert (block(x) == x).float().mean() > 0.9
    hidden = []
    block.mlp.down.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    block(x)
    assert (hidden[0] == 0).float().mean() > 0.9


@pytest.mark.parametrize("one_token", [False, True])
def test_activation_checkpointing_recomputes_the_same_gradients(one_token: bool) -> None:
    kept, x = Transformer(small(drop_rate=0.2), causal=True), torch.randn(B, N, D)
    recomputed = Transformer(small(drop_rate=0.2, activation_checkpointing=True), causal=True)
    recomputed.load_state_dict(kept.state_dict())
    only = torch.tensor([2, 5, 6]) if one_token else None
    num_calls = []
    for block in recomputed.blocks:
        block.mlp.up.register_forward_hook(lambda *_: num_calls.append(1))
    for model in (kept, recomputed):
        torch.manual_seed(7)
        model(x, only=only).pow(3).sum().backward()
    assert len(num_calls) == 2 * len(recomputed.blocks)
    for a, b in zip(kept.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_weights_start_as_clips() -> None:
    dim, depth = 256, 6
    model = Transformer(small(dim=dim, depth=depth))
    block = model.blocks[0]
    expected = {
        block.attention.query: dim**-0.5,
        block.attention.key_value: dim**-0.5,
        block.attention.out: dim**-0.5 * (2 * depth) ** -0.5,
        block.mlp.up: (2 * dim) ** -0.5,
        block.mlp.down: dim**-0.5 * (2 * depth) ** -0.5,
    }
    for linear, std in expected.items():
        assert linear.weight.std().item() == pytest.approx(std, rel=0.02)
        assert not linear.bias.any()
