"""The bag of words: the formula, no order, no padding, every parameter trained, a run that is loaded again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from impresa.config.encoder import EncoderConfig, PoolingName
from impresa.encoders.text import BagOfWords, TextEncoder
from impresa.errors import ConfigError
from impresa.run_dir.load import load_embedder
from impresa.training.run import train
from tiny_run import tiny_experiment, without_charts

B, T, D, E, V, END = 4, 9, 16, 8, 30, 29
BAG = EncoderConfig(backbone="bag", dim=D, embed_dim=E)
VARIANTS = {
    "mlp": BAG,
    "no projection": replace(BAG, projection="none"),
    "linear": replace(BAG, projection="linear"),
    "mean of projected words": replace(BAG, pooling="mean"),
    "attention pooling": replace(BAG, use_attention_pooling=True, num_heads=2),
    "dropout": replace(BAG, drop_rate=0.1),
}


def captions() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of B captions of 3, 9, 5 and 7 tokens."""
    mask = torch.arange(T) < torch.tensor([3, 9, 5, 7])[:, None]
    return torch.randint(1, END, (B, T)).masked_fill(~mask, 0), mask


def test_parity_with_the_plain_formula() -> None:
    """The mean of the rows of the table, its LayerNorm and a linear map, caption by caption in float64."""
    model = TextEncoder(VARIANTS["no projection"], V, END)
    for value in list(model.parameters())[1:3]:  # those of the norm, which start at one and zero
        torch.nn.init.normal_(value)
    ids, mask = captions()
    table, weight, bias, head = (
        value.double() for name, value in model.state_dict().items() if name.startswith(("backbone", "head"))
    )
    for i, length in enumerate(mask.sum(dim=1)):
        mean = sum(table[token] for token in ids[i, :length]) / length
        normal = (mean - mean.mean()) / (mean.var(unbiased=False) + 1e-5).sqrt() * weight + bias
        torch.testing.assert_close(model(ids, mask).pooled[i].double(), head @ normal, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "dropout"])
def test_neither_order_nor_padding_is_seen(name: str) -> None:
    model = TextEncoder(VARIANTS[name], V, END)
    ids, mask = captions()
    pooled = model(ids, mask).pooled
    padded, wider = F.pad(ids, (0, 4), value=END), F.pad(mask, (0, 4))
    torch.testing.assert_close(model(padded, wider).pooled, pooled)
    torch.testing.assert_close(model(ids[1:2].flip(1)).pooled, pooled[1:2])
    other = ids.clone()
    other[1, 4] = ids[1, 4] % (END - 1) + 1
    assert (model(other, mask).pooled[1] - pooled[1]).abs().max() > 1e-4


@pytest.mark.parametrize("name", VARIANTS)
def test_every_choice_trains_every_parameter(name: str) -> None:
    model = TextEncoder(VARIANTS[name], V, END)
    output = model(*captions(), return_tokens=True)
    assert output.pooled.shape == (B, E)
    assert output.tokens.shape == (B, T, D)
    (output.pooled * torch.randn_like(output.pooled)).sum().backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.abs().max() > 1e-7, parameter


def test_asking_for_tokens_does_not_change_the_embedding() -> None:
    model = TextEncoder(BAG, V, END)
    ids, mask = captions()
    torch.testing.assert_close(model(ids, mask, return_tokens=True).pooled, model(ids, mask).pooled)


@pytest.mark.parametrize("pooling", ["cls", "eot"])
def test_a_bag_has_no_token_of_its_own(pooling: PoolingName) -> None:
    with pytest.raises(ConfigError, match=f"pooling: {pooling} is no token of this tower; choose auto or mean"):
        TextEncoder(replace(BAG, pooling=pooling), V, END)


def test_a_run_with_a_bag_is_trained_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_charts(monkeypatch)
    defaults = ("text_encoder.depth=12", "text_encoder.num_heads=8")
    changes = ("text_encoder.backbone=bag", *defaults, "text_encoder.drop_rate=0", "trainer.epochs=1")
    run = train(tiny_experiment(*changes), tmp_path / "run", command=["impresa", "train", "shapes"])
    model = load_embedder(run)
    assert isinstance(model.model.get_submodule("text_encoder.backbone"), BagOfWords)
    one, other, third = model.encode_text(["red circle left", "left red circle", "red circle right"])
    torch.testing.assert_close(one, other)
    unknown = model.encode_text(["red circle left of everything"])
    torch.testing.assert_close(unknown, model.encode_text(["red circle left of"]))
    assert (one - third).abs().max() > 1e-4
