"""The image encoder as a whole: every choice builds and trains, tokens, poolings, freezing, number formats."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

from impresa.config.encoder import EncoderConfig
from impresa.config.types import MemoryConfig, MemoryInit, MemoryPosition, MemoryUpdate
from impresa.encoders.vision import VisionEncoder
from impresa.errors import ConfigError

B, S, D, E, M = 3, 8, 16, 8, 5
PLAIN = EncoderConfig(dim=D, depth=2, num_heads=4, patch_size=4, embed_dim=E)
MEMORY = replace(PLAIN, memory=MemoryConfig(enabled=True, dim=D, num_memory_tokens=M))

VARIANTS: dict[str, EncoderConfig] = {
    **{f"projection={x}": replace(MEMORY, projection=x) for x in ("mlp", "linear", "none")},
    **{f"pooling={x}": replace(MEMORY, pooling=x) for x in ("auto", "cls", "mean")},
    "attention_pooling": replace(MEMORY, use_attention_pooling=True),
    **{f"activation={x}": replace(MEMORY, activation=x) for x in ("gelu", "quick_gelu")},
    "clip": replace(PLAIN, pre_norm=True, patch_bias=False),
    "checkpointing": replace(MEMORY, activation_checkpointing=True),
    "dropout": replace(MEMORY, drop_rate=0.1, attn_drop_rate=0.1),
    "conv_stem": replace(MEMORY, stem="conv"),
    "conv_stem without bias": replace(PLAIN, stem="conv", patch_bias=False, patch_size=2),
    "patch_dropout": replace(MEMORY, patch_dropout=0.5),
    **{
        f"memory={init}-{update}-{position}-{dim}": replace(
            PLAIN,
            memory=MemoryConfig(
                enabled=True,
                dim=dim,
                num_memory_tokens=M,
                memory_init=init,
                memory_update=update,
                memory_position=position,
            ),
        )
        for init in get_args(MemoryInit)
        for update in get_args(MemoryUpdate)
        for position in get_args(MemoryPosition)
        for dim in (D, 12)
    },
}


def images(num: int = B) -> torch.Tensor:
    return torch.randn(num, 3, S, S)


def gradients(model: VisionEncoder, image: torch.Tensor) -> dict[str, torch.Tensor | None]:
    output = model(image)
    (output.pooled * torch.randn_like(output.pooled)).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_choice_trains_every_parameter(name: str) -> None:
    model = VisionEncoder(VARIANTS[name], S)
    for parameter, gradient in gradients(model, images()).items():
        assert gradient is not None, parameter
        assert gradient.isfinite().all(), parameter
        assert gradient.abs().max() > 1e-7, parameter


@pytest.mark.parametrize("name", [name for name in VARIANTS if "memory=" not in name and "dropout" not in name])
def test_asking_for_tokens_does_not_change_the_embedding(name: str) -> None:
    model, image = VisionEncoder(VARIANTS[name], S), images()
    output = model(image, return_tokens=True)
    assert output.tokens.shape == (B, (S // VARIANTS[name].patch_size) ** 2, D)
    assert output.mask is None
    assert (output.memory is None) == (not VARIANTS[name].memory.enabled)
    assert model(image).tokens is None
    torch.testing.assert_close(output.pooled, model(image).pooled)


def test_memory_tokens_come_out_but_are_not_pooled() -> None:
    model = VisionEncoder(replace(MEMORY, pooling="mean"), S)
    output = model(images(), return_tokens=True)
    assert output.memory.shape == (B, M, D)
    torch.testing.assert_close(output.pooled, model.head(output.tokens.mean(1)))


def test_memory_changes_the_embedding() -> None:
    model, image = VisionEncoder(MEMORY, S).eval(), images()
    before = model(image).pooled
    with torch.no_grad():
        model.backbone.memory.tokens.normal_()
    assert not torch.allclose(model(image).pooled, before, atol=1e-3)


@pytest.mark.parametrize("position", get_args(MemoryPosition))
def test_no_memory_tokens_equal_no_memory(position: MemoryPosition) -> None:
    none = replace(MEMORY.memory, num_memory_tokens=0, memory_position=position, memory_update="static")
    plain, empty, image = VisionEncoder(PLAIN, S), VisionEncoder(replace(PLAIN, memory=none), S), images()
    missing, unexpected = empty.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(".memory." in name for name in missing)
    torch.testing.assert_close(empty(image).pooled, plain(image).pooled, rtol=0, atol=0)
    output = empty(image, return_tokens=True)
    torch.testing.assert_close(output.tokens, plain(image, return_tokens=True).tokens)
    assert output.memory.shape == (B, 0, D)


def test_poolings_differ() -> None:
    image = images()
    cls, mean = VisionEncoder(PLAIN, S), VisionEncoder(replace(PLAIN, pooling="mean"), S)
    mean.load_state_dict(cls.state_dict())
    assert not torch.allclose(cls(image).pooled, mean(image).pooled, atol=1e-3)


def test_an_image_has_no_end_token() -> None:
    with pytest.raises(ConfigError, match="pooling: eot is no token of this tower; choose cls or mean"):
        VisionEncoder(replace(PLAIN, pooling="eot"), S)


@pytest.mark.parametrize(
    ("freeze", "checkpoint", "frozen"),
    [(True, None, "backbone."), (None, "a/run", ""), (True, "a/run", ""), (False, "a/run", None)],
)
def test_what_is_frozen_stays_as_it_is(freeze: bool | None, checkpoint: str | None, frozen: str | None) -> None:
    """The backbone of a tower, or all of one that comes from a run."""

    def stays(name: str) -> bool:
        return frozen is not None and name.startswith(frozen)

    model = VisionEncoder(replace(MEMORY, freeze=freeze, checkpoint=checkpoint, drop_rate=0.5), S)
    for _ in range(2):
        assert model.projection.training == (not stays("projection."))
        assert model.backbone.training == model.backbone.memory.training == (not stays("backbone."))
        model.eval().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    image = images()
    if frozen == "":
        assert not model(image).pooled.requires_grad
    else:
        found = gradients(model, image)
        assert all((found[name] is None) == stays(name) for name in found)
    model.commit(step=100)
    unchanged = all(torch.equal(value, before[f"backbone.{n}"]) for n, value in model.backbone.state_dict().items())
    assert unchanged == stays("backbone.")


def test_in_eval_an_embedding_does_not_depend_on_its_batch() -> None:
    model, image = VisionEncoder(MEMORY, S), images(6)
    model(image)
    model.commit(step=1)
    model.eval()
    whole = model(image).pooled
    torch.testing.assert_close(torch.cat([model(part).pooled for part in image.split(1)]), whole)
    torch.testing.assert_close(model(image).pooled, whole, rtol=0, atol=0)


@pytest.mark.parametrize("update", get_args(MemoryUpdate))
def test_number_formats(update: MemoryUpdate) -> None:
    config = replace(MEMORY, memory=replace(MEMORY.memory, memory_update=update, dim=12, memory_init="features"))
    model, image = VisionEncoder(config, S), images()
    with torch.autocast("cpu", torch.bfloat16):
        model(image).pooled.sum().backward()
    model.commit(step=1)
    single = model.eval()(image).pooled
    with torch.autocast("cpu", torch.bfloat16):
        half = model(image).pooled
    assert torch.nn.functional.cosine_similarity(half.float(), single).min() > 0.999
    double = model.double()(image.double()).pooled
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-4, atol=1e-5)
    model.train()(image.double())
    model.commit(step=2)
