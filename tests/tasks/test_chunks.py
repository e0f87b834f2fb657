"""A batch in chunks is the whole batch: loss, gradients and memory, whatever else is switched on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from impresa.config.dataset import DatasetConfig
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig, FusionConfig
from impresa.config.losses import LossConfig
from impresa.config.optimization import OptimizationConfig
from impresa.config.types import MemoryConfig
from impresa.data.audio import NUM_MELS
from impresa.encoders.output import Features
from impresa.errors import ConfigError
from impresa.tasks.alignment import chunks
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.build import build_alignment
from impresa.tasks.alignment.model import AlignmentModel
from two_processes import in_two_processes

B, S, VOCAB, END = 7, 8, 30, 29
TOWER = EncoderConfig(dim=16, depth=1, num_heads=2, patch_size=4, embed_dim=8, max_len=8)
MEMORY = MemoryConfig(enabled=True, dim=12, num_memory_tokens=3, memory_momentum=0.5)
HEARING = replace(TOWER, backbone="spectrogram", patch_size=16, audio_max_seconds=0.5)
FUSED = ("image-text", "text-audio", "image+audio-text")
LIVELY = {"drop_rate": 0.3, "attn_drop_rate": 0.2}
Results = dict[str, Tensor]
Settings = dict[str, Any] | None


def experiment(
    *, memory: Settings = None, vision: Settings = None, text: Settings = None, **others: Any
) -> ExperimentConfig:
    """Changes of the towers and of the loss; `hears` adds an audio tower, `fusion` names its strategy."""
    hears, fusion, losses = others.pop("hears", False), others.pop("fusion", "concat"), others
    vision = {"memory": replace(MEMORY, **(memory or {})), **(vision or {})}
    return ExperimentConfig(
        dataset=DatasetConfig(image_size=S),
        vision_encoder=replace(TOWER, **vision),
        text_encoder=replace(TOWER, backbone="transformer", **(text or {})),
        audio_encoder=HEARING if hears else None,
        fusion=FusionConfig(strategy=fusion, num_heads=2, num_queries=2),
        losses=LossConfig(**losses),
    )


def build(config: ExperimentConfig, chunk_size: int | None) -> AlignmentModel:
    torch.manual_seed(0)
    return build_alignment(replace(config, optimization=OptimizationConfig(chunk_size=chunk_size)), VOCAB, END)


def batches(config: ExperimentConfig, dtype: torch.dtype = torch.float64, count: int = 2) -> Iterator[Batch]:
    """The same ones each time."""
    torch.manual_seed(1)
    for _ in range(count):
        ids = torch.randint(1, END, (B + 3, 6))
        ids[:, -1] = END
        batch = Batch(
            ids=[str(i) for i in range(B)],
            image=torch.randn(B, 3, S, S, dtype=dtype),
            input_ids=ids[:B],
            attention_mask=torch.ones(B, 6, dtype=torch.bool),
            captions=["a"] * B,
            negative_ids=ids[B:],
            negative_mask=torch.ones(3, 6, dtype=torch.bool),
            negative_keys=[2, 11, 12],
        )
        batch.keys = {"image": torch.arange(B) // 2, "text": torch.arange(B), "audio": torch.arange(B)}
        if config.audio_encoder is not None:
            batch.audio = torch.randn(B, 50, NUM_MELS, dtype=dtype)
            batch.audio_mask = torch.arange(50) < torch.tensor([50, 3, 20, 50, 17, 40, 1])[:, None]
            batch.image_present = torch.tensor([1, 0, 1, 1, 1, 1, 1]).bool()
            batch.text_present = torch.tensor([1, 1, 0, 1, 1, 1, 0]).bool()
            batch.audio_present = torch.tensor([0, 0, 0, 0, 1, 0, 1]).bool()  # none in the first chunks
        yield batch


def trained(config: ExperimentConfig, chunk_size: int | None, *, mixed: bool = False) -> Results:
    """All that two batches with added gradients, and the commit behind them, leave."""
    model = build(config, chunk_size)
    dtype = torch.float32 if mixed else torch.float64
    results: Results = {}
    for number, batch in enumerate(batches(config, dtype)):
        torch.manual_seed(2 + number)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if mixed else nullcontext():
            output = model.to(dtype)(batch)
        output.loss.backward()
        results |= {f"{number}.{name}": value for name, value in output.logs.items()}
        results |= {f"{number}.{name}": value.detach() for name, value in output.embeddings.items()}
    model.commit(1)
    assert all(parameter.grad is not None for parameter in model.parameters())
    results |= {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
    return results | {f"buffer {name}": value for name, value in model.named_buffers()}


def assert_same(found: Results, expected: Results, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance, msg=name)


CASES = {
    "clip": experiment(),
    "siglip, duplicates and negatives": experiment(type="siglip", row_chunk=2),
    "all prefixes": experiment(vision={"use_mrl": True, "mrl_dimensions": (4, 2)}),
    "a drawn prefix": experiment(vision={"use_mrl": True, "mrl_dimensions": (4, 2)}, sample_single_mrl_dim=True),
    "memory that starts from the batch": experiment(memory={"memory_init": "features", "dim": 16}),
    "gated memory, recomputed blocks": experiment(
        memory={"memory_update": "gated"}, vision={"activation_checkpointing": True}
    ),
    "static memory, perceiver": experiment(
        memory={"memory_update": "static"}, vision={"use_perceiver": True, "perceiver_num_heads": 2}
    ),
    "sounds, with gaps": experiment(hears=True),
    **{f"sounds fused by {kind}, with gaps": experiment(hears=True, fusion=kind, pairs=FUSED)
       for kind in ("concat", "cross_attention", "gated")},
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_loss_gradients_and_memory_are_those_of_the_whole_batch(case: str) -> None:
    expected = trained(CASES[case], None)
    for chunk_size in (1, 3):
        assert_same(trained(CASES[case], chunk_size), expected, 1e-9)


@pytest.mark.parametrize("mixed", [False, True])
def test_both_passes_over_a_chunk_draw_the_same(mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout of all kinds the gradient is that of the chunks' graphs, had they been kept."""
    config = experiment(vision={"patch_dropout": 0.5, **LIVELY}, text=LIVELY, hears=True, pairs=FUSED)
    found, whole = trained(config, 3, mixed=mixed), trained(config, None, mixed=mixed)
    monkeypatch.setattr(chunks, "checkpoint", lambda encode, *chunk, **_: encode(*chunk))
    assert_same(found, trained(config, 3, mixed=mixed), 2e-2 if mixed else 1e-12)
    assert not torch.allclose(found["0.image"].float(), whole["0.image"].float(), rtol=0.05)  # other draws, as is said


def test_in_mixed_precision_it_differs_by_rounding_alone() -> None:
    assert_same(trained(CASES["clip"], 3, mixed=True), trained(CASES["clip"], None, mixed=True), 3e-2)


def test_evaluation_goes_by_chunks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CASES["sounds fused by concat, with gaps"]
    (batch,) = batches(config, count=1)
    whole, chunked = (build(config, size).double().eval() for size in (None, 2))
    rows: list[int] = []
    text = chunked.text_encoder
    text.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    with torch.no_grad():
        torch.testing.assert_close(chunked(batch).loss, whole(batch).loss)
    assert rows == [2, 2, 2, 2]  # five captions of seven samples, and three negatives


def test_a_batch_within_one_chunk_is_encoded_once() -> None:
    passes: list[int] = []
    for size in (B + 3, None, 4):
        model = build(CASES["clip"], size).double()
        model.vision_encoder.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
        model(next(batches(CASES["clip"]))).loss.backward()
    assert passes == [B, B, 4, 3, 3, 4]


# Over two processes


def shared(rank: int | None, chunk_size: int | None) -> Results:
    """Gradients of two batches, all rows in one process or part of them in each of two, which exchange them once."""
    config = experiment(gather_distributed=True, vision={"use_mrl": True, "mrl_dimensions": (4,)})
    model = build(config, chunk_size).double()
    rows = {None: slice(None), 0: slice(0, 5), 1: slice(5, B)}[rank]
    wrapped = model if rank is None else DistributedDataParallel(model)
    exchanged: list[int] = []
    if isinstance(wrapped, DistributedDataParallel):
        wrapped.register_comm_hook(None, _counting(exchanged))
    for number, batch in enumerate(batches(config)):
        own = replace(batch, image=batch.image[rows], input_ids=batch.input_ids[rows])
        own = replace(own, attention_mask=batch.attention_mask[rows], negative_ids=None, negative_mask=None)
        own.keys = {name: keys[rows] for name, keys in batch.keys.items()}
        with wrapped.no_sync() if rank is not None and number == 0 else nullcontext():
            wrapped(own).loss.backward()
    model.commit(1)
    assert sum(exchanged) == (0 if rank is None else sum(p.numel() for p in model.parameters()))
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return found | dict(model.named_buffers())


def _counting(exchanged: list[int]) -> Any:
    def hook(state, bucket):
        exchanged.append(bucket.buffer().numel())
        return allreduce_hook(None, bucket)

    return hook


def test_two_processes_in_chunks_are_one_with_the_whole_batch(tmp_path: Path) -> None:
    expected = shared(None, None)
    for found in in_two_processes(shared, tmp_path, 2, start="fork"):
        assert_same(found, expected, 1e-9)


# Refused


class Norms(nn.Module):
    """A backbone with batch norms."""

    dim, summary = 4, None

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.lift = nn.Linear(3, 4)

    def forward(self, image: Tensor, *, summary_only: bool = False) -> Features:
        return Features(tokens=self.lift(self.norm(image).flatten(2).transpose(1, 2)))


def test_batch_norms_are_refused_unless_they_are_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impresa.encoders.vision.load_vision_backbone", Norms)
    resnet: dict[str, Any] = {"backbone": "timm:resnet", "memory": MemoryConfig()}
    trains, frozen = (experiment(vision={**resnet, "freeze": freeze}) for freeze in (False, True))
    build(trains, None)
    build(frozen, 2)
    with pytest.raises(ConfigError, match=r"^optimization\.chunk_size: vision_encoder has batch norms.*freeze=true"):
        build(trains, 2)
