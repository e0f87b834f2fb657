"""The text encoder: trimmed batches, causality, the end token, masks."""

from __future__ import annotations

import pytest
import torch

from impresa.config.encoder import EncoderConfig
from impresa.encoders.text import TextEncoder
from impresa.errors import ConfigError, DataError

B, T, D, E, V, END, PAD = 4, 9, 16, 8, 30, 29, 0
LENGTHS = (3, 9, 5, 7)


def small(**changes: object) -> EncoderConfig:
    return EncoderConfig(
        **{
            "backbone": "transformer",
            "dim": D,
            "depth": 3,
            "num_heads": 4,
            "embed_dim": E,
            "max_len": 20,
            "projection": "none",
            **changes,
        }
    )


def captions(length: int = T) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of B captions of LENGTHS tokens, padded to `length`."""
    ids = torch.randint(1, END, (B, length), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor(LENGTHS)
    mask = torch.arange(length) < lengths[:, None]
    ids[torch.arange(B), lengths - 1] = END
    return ids.masked_fill(~mask, PAD), mask


def pad(ids: torch.Tensor, mask: torch.Tensor, length: int, pad_id: int = PAD) -> tuple[torch.Tensor, torch.Tensor]:
    extra = (0, length - ids.shape[1])
    return torch.nn.functional.pad(ids, extra, value=pad_id), torch.nn.functional.pad(mask, extra, value=False)


@pytest.mark.parametrize("changes", [{}, {"pooling": "mean"}, {"use_attention_pooling": True}, {"projection": "mlp"}])
@pytest.mark.parametrize("pad_id", [PAD, END])
def test_trimmed_equals_padded(changes: dict[str, object], pad_id: int) -> None:
    model = TextEncoder(small(**changes), V, END)
    ids, mask = captions()
    trimmed = model(ids, mask).pooled
    torch.testing.assert_close(model(*pad(ids, mask, 20, pad_id)).pooled, trimmed, rtol=1e-6, atol=1e-6)


def test_each_caption_alone_equals_itself_in_the_batch() -> None:
    model = TextEncoder(small(), V, END)
    ids, mask = captions()
    alone = [model(ids[i : i + 1, :n], mask[i : i + 1, :n]).pooled for i, n in enumerate(LENGTHS)]
    torch.testing.assert_close(torch.cat(alone), model(ids, mask).pooled, rtol=1e-5, atol=1e-6)


def test_every_token_of_a_caption_counts_and_none_behind_its_end() -> None:
    model = TextEncoder(small(), V, END)
    ids, mask = captions()
    pooled = model(ids, mask).pooled
    for position in range(T):
        changed = ids.clone()
        changed[2, position] = 17 if ids[2, position] != 17 else 18
        differs = not torch.allclose(model(changed, mask).pooled[2], pooled[2], atol=1e-5)
        assert differs == (position < LENGTHS[2])


def test_the_first_end_token_is_the_summary() -> None:
    model = TextEncoder(small(), V, END)
    ids, mask = captions()
    output = model(ids, mask, return_tokens=True)
    ends = output.tokens[torch.arange(B), torch.tensor(LENGTHS) - 1]
    torch.testing.assert_close(output.pooled, model.head(ends))


@pytest.mark.parametrize("projection", ["mlp", "none"])
def test_asking_for_tokens_does_not_change_the_embedding(projection: str) -> None:
    model = TextEncoder(small(projection=projection), V, END)
    ids, mask = captions()
    output = model(ids, mask, return_tokens=True)
    assert output.tokens.shape == (B, T, D)
    assert output.mask is mask
    assert model(ids, mask).tokens is None
    torch.testing.assert_close(output.pooled, model(ids, mask).pooled)


def test_drop_rate_acts_on_the_embeddings() -> None:
    model, entering = TextEncoder(small(drop_rate=0.5), V, END), []
    model.backbone.transformer.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    model(*captions())
    assert 0.3 < (entering[0] == 0).float().mean() < 0.7


def test_too_long_a_text_is_refused() -> None:
    model = TextEncoder(small(max_len=8), V, END)
    with pytest.raises(DataError, match="input_ids: 9 tokens, but the text tower reads 8; truncate or raise max_len"):
        model(*captions())


def test_a_text_has_no_cls() -> None:
    with pytest.raises(ConfigError, match="pooling: cls is no token of this tower; choose eot or mean"):
        TextEncoder(small(pooling="cls"), V, END)


def test_weights_start_as_clips() -> None:
    backbone = TextEncoder(small(dim=256), 1000, END).backbone
    assert backbone.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert backbone.positions.std().item() == pytest.approx(0.01, rel=0.05)
