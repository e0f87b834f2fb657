"""Pretrained text towers with several texts in a row: the embeddings and gradients of each text alone, or a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from impresa.config.encoder import EncoderConfig
from impresa.encoders.text import TextEncoder
from impresa.errors import ConfigError
from packed_texts import LENGTHS, assert_close_in_norm, counting, encoded

V, T, END = 30, 9, 29
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": V}
DRY: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 32}
PACKED: dict[str, Any] = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SIZES, **DRY)),
    "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(**SIZES, **DRY, pad_token_id=1)),
    "clip": lambda: transformers.CLIPTextModel(_clip(END)),
    "clip, old": lambda: transformers.CLIPTextModel(_clip(2)),
}
REFUSED: dict[str, Any] = {
    "t5": lambda: transformers.T5EncoderModel(
        transformers.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=V)
    ),
    "siglip": lambda: transformers.SiglipTextModel(
        transformers.SiglipTextConfig(**SIZES, max_position_embeddings=T, projection_size=16)
    ),
    "modernbert": lambda: transformers.ModernBertModel(
        transformers.ModernBertConfig(**SIZES, pad_token_id=0, local_attention=4, max_position_embeddings=32)
    ),
}


def _clip(end: int) -> Any:
    return transformers.CLIPTextConfig(**SIZES, max_position_embeddings=12, eos_token_id=end, bos_token_id=1)


def tower(model: Any, folder: Path, **changes: Any) -> TextEncoder:
    torch.manual_seed(0)
    built = model()
    for name, parameter in built.named_parameters():
        is_gain = "norm" in name.lower() and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=float(is_gain), std=0.2)
    built.save_pretrained(folder)
    return TextEncoder(EncoderConfig(backbone=str(folder), embed_dim=8, projection="none", **changes), V, END).train()


def texts(lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask; each text ends with its end token."""
    ids = torch.randint(3, END, (len(lengths), T), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(T) < torch.tensor(lengths).clamp(min=1)[:, None]
    ids[torch.arange(len(lengths)), mask.sum(dim=1) - 1] = END
    return ids.masked_fill(~mask, 1), mask


@pytest.mark.parametrize("changes", [{}, {"use_attention_pooling": True, "num_heads": 2}], ids=["auto", "attention"])
@pytest.mark.parametrize("family", PACKED)
def test_outputs_and_gradients_are_those_of_padded_texts(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = tower(PACKED[family], tmp_path, **changes).double()
    for lengths in LENGTHS.values():
        ids, mask = texts(lengths)
        model.pack(False)
        padded, expected = encoded(model, ids, mask)
        model.pack(True)
        packed, found = encoded(model, ids, mask)
        torch.testing.assert_close(packed.pooled, padded.pooled, rtol=1e-12, atol=1e-12)
        assert_close_in_norm(found, expected, 1e-12)


@pytest.mark.parametrize("family", PACKED)
def test_fewer_tokens_are_computed(family: str, tmp_path: Path) -> None:
    model, (ids, mask) = tower(PACKED[family], tmp_path), texts((3, 9, 2, 1, 6, 3))
    model.pack(True)
    with counting(model.backbone) as tokens:
        encoded(model, ids, mask)
    assert max(tokens.values()) <= int(mask.sum()) + 3 < mask.numel()


@pytest.mark.parametrize("family", REFUSED)
def test_a_tower_that_would_compute_them_otherwise_is_refused(family: str, tmp_path: Path) -> None:
    model = tower(REFUSED[family], tmp_path)
    with pytest.raises(ConfigError, match=r"^optimization\.packing: (a|the) .*text tower .*leave it out$"):
        model.pack(True)
    model.pack(False)
    assert model.training
