"""`optimization.packing` in whole models: the loss and gradients of padded texts, whatever else is switched on."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from impresa.config.dataset import DatasetConfig
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.config.losses import LossConfig
from impresa.config.optimization import OptimizationConfig
from impresa.config.types import MemoryConfig
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.build import build_alignment
from packed_texts import assert_close_in_norm
from two_processes import in_two_processes

B, S, T, VOCAB, END = 6, 8, 8, 30, 29
TOWER = EncoderConfig(dim=16, depth=2, num_heads=2, patch_size=4, embed_dim=8, max_len=T)
LENGTHS = (3, 8, 5, 2, 5, 8, 4, 2)
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "in chunks": {"chunk_size": 4},
    "in single texts": {"chunk_size": 1},
    "recomputed": {"text": {"activation_checkpointing": True}},
    "prefixes and memory": {
        "vision": {"use_mrl": True, "mrl_dimensions": (4, 2), "memory": MemoryConfig(enabled=True, dim=12)}
    },
    "siglip, mean": {"type": "siglip", "text": {"pooling": "mean"}},
    "texts that are not there": {"absent": True},
}


def experiment(packing: bool, *, vision: Any = None, text: Any = None, **others: Any) -> ExperimentConfig:
    optimization = OptimizationConfig(packing=packing, chunk_size=others.pop("chunk_size", None))
    return ExperimentConfig(
        dataset=DatasetConfig(image_size=S),
        vision_encoder=replace(TOWER, **(vision or {})),
        text_encoder=replace(TOWER, backbone="transformer", **(text or {})),
        losses=LossConfig(**others),
        optimization=optimization,
    )


def batch_of(absent: bool) -> Batch:
    """Captions and wrong captions of many lengths."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, END, (B + 2, T), generator=generator)
    mask = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
    ids[torch.arange(B + 2), torch.tensor(LENGTHS) - 1] = END
    batch = Batch(
        ids=[str(i) for i in range(B)],
        image=torch.randn(B, 3, S, S, generator=generator),
        input_ids=ids[:B].masked_fill(~mask[:B], 0),
        attention_mask=mask[:B],
        captions=["a"] * B,
        negative_ids=ids[B:].masked_fill(~mask[B:], 0),
        negative_mask=mask[B:],
        negative_keys=[11, 12],
    )
    if absent:
        batch.text_present = torch.tensor([1, 1, 0, 1, 1, 0]).bool()
    batch.keys = {name: torch.arange(B) for name in ("image", "text", "audio")}  # type: ignore[dict-item]
    return batch


def trained(packing: bool, **case: Any) -> dict[str, Tensor]:
    absent = case.pop("absent", False)
    torch.manual_seed(0)
    model = build_alignment(experiment(packing, **case), VOCAB, END)
    loss = model(batch_of(absent)).loss
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", list(CASES))
def test_loss_and_gradients_are_those_of_padded_texts(case: str) -> None:
    expected, found = (trained(packing, **CASES[case]) for packing in (False, True))
    assert_close_in_norm(found, expected, 5e-6)


def shared(rank: int | None, packing: bool) -> dict[str, Tensor]:
    """Gradients of two batches, all rows in one process or part of them in each of two."""
    torch.manual_seed(0)
    model = build_alignment(experiment(packing, gather_distributed=True), VOCAB, END)
    rows = {None: slice(None), 0: slice(0, 4), 1: slice(4, B)}[rank]
    wrapped = model if rank is None else DistributedDataParallel(model)
    whole = batch_of(False)
    own = replace(whole, image=whole.image[rows], input_ids=whole.input_ids[rows], negative_ids=None)
    own = replace(own, attention_mask=whole.attention_mask[rows], negative_mask=None)
    own.keys = {name: keys[rows] for name, keys in whole.keys.items()}
    for number in range(2):
        with wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not number else nullcontext():
            wrapped(own).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_two_processes_with_packing_are_one_without(tmp_path: Path) -> None:
    expected = shared(None, False)
    for found in in_two_processes(shared, tmp_path, True, start="fork"):
        assert_close_in_norm(found, expected, 5e-6)
