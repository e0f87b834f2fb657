"""Texts behind a shared prefix: the same loss, logits and gradients as with a prefix of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from impresa.config.decoder import DecoderConfig, RecursionConfig
from impresa.decoders.base import Decoder
from impresa.decoders.pretrained import PretrainedDecoder
from impresa.decoders.trm import TRMDecoder
from impresa.errors import DataError
from tiny_qwen import save_qwen

N, P, R, T = 3, 4, 5, 6
ROWS = torch.tensor([0, 0, 1, 2, 2])
TRM = DecoderConfig(
    type="trm",
    dim=16,
    num_heads=2,
    vocab_size=300,
    recursion=RecursionConfig(num_cycles=2, num_steps=2, num_rounds=2, dropout=0.0),
)


def decoders(folder: Path) -> dict[str, Decoder]:
    torch.manual_seed(0)
    model = str(save_qwen(folder / "qwen"))
    return {
        "trm": TRMDecoder(TRM, 264),
        "plain": TRMDecoder(replace(TRM, recursion=RecursionConfig(recursive=False, dropout=0.0)), 264),
        "recomputed": TRMDecoder(replace(TRM, activation_checkpointing=True), 264),
        "qwen": PretrainedDecoder(DecoderConfig(model=model)),
    }


@pytest.mark.parametrize("name", ["trm", "plain", "recomputed", "qwen"])
def test_a_shared_prefix_is_as_good_as_ones_own(name: str, tmp_path: Path) -> None:
    decoder = decoders(tmp_path)[name]
    prefix = torch.randn(N, P, decoder.hidden_size, requires_grad=True)
    prefix_mask = torch.tensor([[True] * 4, [True, True, False, False], [False, True, True, True]])
    ids = torch.randint(0, 256, (R, T))
    mask = torch.arange(T) < torch.tensor([6, 4, 5, 6, 3])[:, None]
    labels = ids.masked_fill(~mask | (torch.arange(T) < 2), -100)
    own = decoder(ids, mask, prefix[ROWS], labels, prefix_mask[ROWS], return_logits=True)
    own.loss.backward()
    expected, prefix.grad = prefix.grad, None
    weights = {n: p.grad.clone() for n, p in decoder.named_parameters() if p.grad is not None}
    decoder.zero_grad()
    shared = decoder(ids, mask, prefix, labels, prefix_mask, return_logits=True, prefix_of_row=ROWS)
    shared.loss.backward()
    real = torch.cat((prefix_mask[ROWS], mask), dim=1)
    torch.testing.assert_close(shared.loss, own.loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(shared.logits[real], own.logits[real], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prefix.grad, expected, rtol=1e-4, atol=1e-6)
    assert weights
    for n, p in decoder.named_parameters():
        if n in weights:
            torch.testing.assert_close(p.grad, weights[n], rtol=1e-4, atol=1e-6)


def test_the_recursive_model_reads_a_shared_prefix_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, seen = TRMDecoder(TRM, 264), []
    run = decoder.recursion.forward
    monkeypatch.setattr(
        decoder.recursion, "forward", lambda x, *rest: (seen.append(tuple(x.shape[:2])), run(x, *rest))[1]
    )
    ids = torch.randint(0, 256, (R, T))
    decoder(ids, torch.ones_like(ids), torch.randn(N, P, 16), ids, prefix_of_row=ROWS)
    assert seen == [(N, P), (R, T)]


@pytest.mark.parametrize("name", ["trm", "recomputed", "qwen"])
def test_texts_are_embedded_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, embedded = decoders(tmp_path)[name], []
    embed = decoder.embed
    monkeypatch.setattr(decoder, "embed", lambda ids: (embedded.append(ids), embed(ids))[1])
    ids = torch.randint(0, 256, (R, T))
    decoder(ids, torch.ones_like(ids), torch.randn(N, P, decoder.hidden_size), ids, prefix_of_row=ROWS)
    assert len(embedded) == 1


@pytest.mark.parametrize("name", ["trm", "qwen"])
def test_a_shared_prefix_is_checked_and_takes_the_type_of_the_texts(name: str, tmp_path: Path) -> None:
    decoder = decoders(tmp_path)[name].bfloat16()
    ids = torch.randint(0, 256, (R, T))
    with pytest.raises(DataError, match=r"^prefix_embeds: shape \(3, 4, 99\) does not fit .*; give \(3, 4, \d+\)$"):
        decoder(ids, torch.ones_like(ids), torch.randn(N, P, 99), ids, prefix_of_row=ROWS)
    prefix = torch.randn(N, P, decoder.hidden_size)
    assert decoder(ids, torch.ones_like(ids), prefix, ids, prefix_of_row=ROWS).hidden.dtype == torch.bfloat16
