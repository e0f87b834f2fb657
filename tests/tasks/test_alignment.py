"""The alignment model: what a step gives, what a commit does, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from impresa.config.dataset import DatasetConfig
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.config.types import MemoryConfig
from impresa.errors import DataError
from impresa.losses.clip import clip_loss
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.build import build_alignment
from impresa.tasks.alignment.model import AlignmentModel

B, S, E, VOCAB, END = 8, 8, 12, 30, 29
TOWER = EncoderConfig(dim=16, depth=2, num_heads=4, patch_size=4, embed_dim=E, max_len=12)
MEMORY = MemoryConfig(enabled=True, dim=16, num_memory_tokens=3, mem_reinit_steps=4)


def build(**memory: object) -> AlignmentModel:
    config = ExperimentConfig(
        dataset=DatasetConfig(image_size=S),
        vision_encoder=replace(TOWER, memory=replace(MEMORY, **memory)),
        text_encoder=replace(TOWER, backbone="transformer"),
    )
    return build_alignment(config, VOCAB, END)


def batch() -> Batch:
    ids = torch.randint(1, END, (B, 6))
    ids[:, -1] = END
    return Batch(
        ids=[str(i) for i in range(B)],
        image=torch.randn(B, 3, S, S),
        input_ids=ids,
        attention_mask=torch.ones(B, 6, dtype=torch.bool),
    )


def test_a_step_gives_loss_logs_and_embeddings() -> None:
    model, data = build(), batch()
    output = model(data)
    image, text = output.embeddings["image"], output.embeddings["text"]
    assert image.shape == text.shape == (B, E)
    torch.testing.assert_close(image, model.embed_image(data.image))
    torch.testing.assert_close(text, model.embed_text(data.input_ids, data.attention_mask))
    assert not torch.allclose(image.norm(dim=-1), torch.ones(B), atol=1e-2)
    torch.testing.assert_close(output.loss, clip_loss(image, text, model.loss.logit_scale.exp()))
    assert set(output.logs) == {"loss", "contrastive", "logit_scale"}
    torch.testing.assert_close(output.logs["loss"], output.loss.detach())


def test_a_batch_of_images_alone_can_be_embedded_but_not_aligned() -> None:
    model, data = build(), replace(batch(), input_ids=None, attention_mask=None)
    assert list(model.embed(data)) == ["image"]
    with pytest.raises(DataError, match="batch: has only image"):
        model(data)


def test_a_commit_moves_the_memory_and_clamps_the_scale() -> None:
    model = build()
    model.loss.logit_scale.data.fill_(9.0)
    model(batch())
    model.commit(step=4)
    memory = model.vision_encoder.backbone.memory
    assert memory.state.abs().max() > 0
    assert memory.reset_pending
    assert model.loss.logit_scale.item() == pytest.approx(math.log(100))


def test_it_learns_a_batch_by_heart() -> None:
    model, data = build(), batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(1, 41):
        optimizer.zero_grad()
        output = model(data)
        output.loss.backward()
        optimizer.step()
        model.commit(step)
        losses.append(output.loss.item())
    assert losses[0] > 1.5
    assert losses[-1] < 0.1


def test_a_saved_model_embeds_the_same() -> None:
    model, data = build(memory_init="features"), batch()
    model(data)
    model.commit(step=1)
    twin = build(memory_init="features")
    twin.load_state_dict(model.state_dict())
    a, b = model.eval().embed(data), twin.eval().embed(data)
    torch.testing.assert_close(a, b, rtol=0, atol=0)
