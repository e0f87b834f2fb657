"""The three strategies of fusion: shapes, masks, and that what is absent reaches nothing."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from impresa.config.experiment import FusionConfig
from impresa.encoders.output import EncoderOutput
from impresa.fusion import STRATEGIES, FusedEmbedding, build_fusion

B, H, E = 4, 16, 6
DIMS = {"image": 12, "audio": 8}
CONFIG = FusionConfig(num_queries=5)
HAS_AUDIO = torch.tensor([True, False, True, False])
EVERY = pytest.mark.parametrize("strategy", STRATEGIES)
BOTH = pytest.mark.parametrize("projector", ["linear", "mlp"])


def encoded() -> dict[str, EncoderOutput]:
    """Nine image tokens and seven of sound, the last of which are padding."""
    real = torch.arange(7) < torch.tensor([7, 2, 5, 7])[:, None]
    image = EncoderOutput(torch.zeros(B, 1), torch.randn(B, 9, 12))
    return {"image": image, "audio": EncoderOutput(torch.zeros(B, 1), torch.randn(B, 7, 8), real)}


def fusion(strategy: str, **changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_fusion(replace(CONFIG, strategy=strategy, **changes), DIMS, H)


@EVERY
def test_shape_and_mask_of_the_prefix(strategy: str) -> None:
    inputs = encoded()
    prefix = fusion(strategy)(inputs, {"audio": HAS_AUDIO})
    num_tokens = 16 if strategy == "concat" else 5
    assert prefix.tokens.shape == (B, num_tokens, H)
    assert prefix.mask.shape == (B, num_tokens)
    expected = [14 + 2, 9, 9 + 5, 9] if strategy == "concat" else [5] * B
    assert prefix.mask.sum(dim=1).tolist() == expected
    assert not prefix.tokens[~prefix.mask].any()
    assert prefix.tokens[prefix.mask].abs().sum(dim=1).min() > 0


@EVERY
def test_neither_padding_nor_an_absent_modality_reaches_anything(strategy: str) -> None:
    model, inputs, present = fusion(strategy), encoded(), {"audio": HAS_AUDIO}
    before = model(inputs, present)
    audio = inputs["audio"]
    unseen = ~(audio.mask & HAS_AUDIO[:, None])
    audio.tokens = audio.tokens.masked_fill(unseen[:, :, None], float("nan"))
    after = model(inputs, present)
    assert torch.equal(before.tokens, after.tokens)
    assert torch.equal(before.mask, after.mask)


@EVERY
def test_without_a_modality_a_sample_is_fused_as_if_there_were_none(strategy: str) -> None:
    model, inputs = FusedEmbedding(fusion(strategy), E), encoded()
    both = model(inputs, {"audio": HAS_AUDIO})
    image_only = model({"image": inputs["image"]})
    torch.testing.assert_close(both[~HAS_AUDIO], image_only[~HAS_AUDIO])
    assert (both - image_only)[HAS_AUDIO].abs().max() > 1e-3


@EVERY
@BOTH
def test_every_modality_and_parameter_counts(strategy: str, projector: str) -> None:
    model, inputs = FusedEmbedding(fusion(strategy, projector=projector), E), encoded()
    for output in inputs.values():
        output.tokens.requires_grad_()
    model(inputs, {"audio": HAS_AUDIO}).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert inputs["image"].tokens.grad.abs().sum(dim=2).min() > 0
    real = inputs["audio"].mask & HAS_AUDIO[:, None]
    assert torch.equal(inputs["audio"].tokens.grad.abs().sum(dim=2) > 0, real)


@EVERY
def test_a_sample_without_anything_is_masked_and_embedded_as_zero(strategy: str) -> None:
    nobody = torch.zeros(B, dtype=torch.bool)
    present = {"image": nobody, "audio": nobody}
    assert not fusion(strategy)(encoded(), present).mask.any()
    assert not FusedEmbedding(fusion(strategy), E)(encoded(), present).any()


@EVERY
def test_autocast_changes_little_and_leaves_zero_what_is_absent(strategy: str) -> None:
    model, inputs = FusedEmbedding(fusion(strategy), E), encoded()
    has = torch.tensor([True, False, True, True])
    present = {"image": has, "audio": has & HAS_AUDIO}
    with torch.autocast("cpu", torch.bfloat16):
        found = model(inputs, present)
    torch.testing.assert_close(found.float(), model(inputs, present), atol=0.05, rtol=0.05)
    assert not found[1].any()


def test_the_strategies_and_their_settings_differ() -> None:
    inputs = encoded()
    embeddings = [FusedEmbedding(fusion(strategy), E)(inputs) for strategy in STRATEGIES]
    assert all(not torch.allclose(one, two, atol=1e-3) for one, two in pairwise(embeddings))
    for strategy in ("cross_attention", "gated"):
        assert fusion(strategy, num_queries=3)(inputs).tokens.shape == (B, 3, H)
    assert len(fusion("cross_attention", layers=3).reader.layers) == 3
    few, many = (fusion("cross_attention", num_heads=heads)(inputs).tokens for heads in (2, 8))
    assert not torch.allclose(few, many, atol=1e-3)


@EVERY
def test_dropout_is_for_training_only(strategy: str) -> None:
    model, plain, inputs = fusion(strategy, dropout=0.5), fusion(strategy), encoded()
    dropped = model(inputs).tokens
    assert 0.2 < (dropped == 0).float().mean() < 0.7
    torch.testing.assert_close(model.eval()(inputs).tokens, plain.eval()(inputs).tokens)


def test_gates_are_shares() -> None:
    model, inputs = fusion("gated"), encoded()
    alone = [model({name: inputs[name]}).tokens for name in DIMS]
    both = model(inputs).tokens
    shares = (both - alone[1]) / (alone[0] - alone[1])
    assert (shares.std(dim=2) < 1e-3).all()
    assert ((shares.mean(dim=2) > 0) & (shares.mean(dim=2) < 1)).all()


def test_runs_of_before_know_these_names() -> None:
    shared = {f"projections.{name}.{part}" for name in DIMS for part in ("weight", "bias")} | {
        "marks.image",
        "marks.audio",
    }
    assert fusion("concat").state_dict().keys() == shared
    read = {"reader.queries", "reader.norm.weight", "reader.layers.1.attention.key_value.weight"}
    assert read | shared < fusion("cross_attention").state_dict().keys()
    assert {"reader.queries", "gate.weight", "gate.bias"} | shared < fusion("gated").state_dict().keys()


@EVERY
def test_the_mlp_is_two_linear_layers_with_gelu_between(strategy: str) -> None:
    model, inputs = fusion(strategy, projector="mlp"), encoded()
    before = model(inputs)
    for name, width in DIMS.items():
        theirs = nn.Sequential(nn.Linear(width, H), nn.GELU(), nn.Linear(H, H))  # LLaVA-1.5's `mlp2x_gelu`
        own = [
            model.projections[name].get_parameter(key) for key in ("up.weight", "up.bias", "down.weight", "down.bias")
        ]
        with torch.no_grad():
            for ours, parameter in zip(own, theirs.parameters(), strict=True):
                parameter.copy_(ours)
        model.projections[name] = theirs
    torch.testing.assert_close(model(inputs).tokens, before.tokens)


@EVERY
def test_a_projector_changes_no_shape_and_no_mask(strategy: str) -> None:
    plain, deep = (fusion(strategy, projector=name)(encoded()) for name in ("linear", "mlp"))
    assert plain.tokens.shape == deep.tokens.shape
    assert torch.equal(plain.mask, deep.mask)
