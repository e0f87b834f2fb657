"""Every switch of the loss, from the config to a training step: each changes it, and each can be trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from impresa.config.dataset import DatasetConfig
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.config.losses import LossConfig
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.build import build_alignment
from impresa.tasks.alignment.model import AlignmentModel, AlignmentOutput

B, S, E, VOCAB, END = 8, 8, 12, 30, 29
TOWER = EncoderConfig(dim=16, depth=1, num_heads=4, patch_size=4, embed_dim=E, max_len=12)
CONFIG = ExperimentConfig(
    dataset=DatasetConfig(image_size=S),
    vision_encoder=replace(TOWER, use_mrl=True, mrl_dimensions=(8, 4)),
    text_encoder=replace(TOWER, backbone="transformer"),
    losses=LossConfig(mrl_weight=0.5, duplicates="ignore"),
)


def build(config: ExperimentConfig) -> AlignmentModel:
    torch.manual_seed(0)
    return build_alignment(config, VOCAB, END)


def batch() -> Batch:
    """Two captions are the same, and yet not their tokens, as after dropping words: equal tokens have equal embeddings,
    to which `clip` does the same with and without duplicates."""
    torch.manual_seed(1)
    ids = torch.randint(1, END, (B, 6))
    ids[:, -1] = END
    captions = ["the same", "the same", *(f"caption {i}" for i in range(2, B))]
    keys = {"image": torch.arange(B), "text": torch.tensor([1, 1, *range(2, B)]), "audio": torch.zeros(B)}
    image, mask = torch.randn(B, 3, S, S), torch.ones(B, 6, dtype=torch.bool)
    ids_of = [str(i) for i in range(B)]
    return Batch(ids_of, image=image, keys=keys, input_ids=ids, attention_mask=mask, captions=captions)


def step(config: ExperimentConfig) -> AlignmentOutput:
    """Loss of a fresh model, whose every trainable parameter must get a gradient."""
    model = build(config)
    output = model(batch())
    output.loss.backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []
    return output


LOSSES = {
    "type": {"type": "siglip"},
    "contrastive_weight": {"contrastive_weight": 0.7},
    "mrl_weight": {"mrl_weight": 0.7},
    "temperature": {"temperature": 0.2},
    "siglip_bias": {"type": "siglip", "siglip_bias": -1.0},
    "sample_single_mrl_dim": {"sample_single_mrl_dim": True},
    "duplicates": {"duplicates": "positive"},
    "siglip duplicates": {"type": "siglip", "duplicates": "positive"},
}


def test_each_switch_gives_a_loss_of_its_own_and_reaches_every_parameter() -> None:
    found = {name: step(replace(CONFIG, losses=replace(CONFIG.losses, **change))) for name, change in LOSSES.items()}
    found["none"] = step(CONFIG)
    losses = [output.loss.item() for output in found.values()]
    assert len({round(loss, 5) for loss in losses}) == len(losses), dict(zip(found, losses, strict=True))


def test_matryoshka_dimensions_are_those_of_the_vision_encoder_and_only_with_use_mrl() -> None:
    names = {name for name in step(CONFIG).logs if name.startswith("mrl_")}
    assert names == {"mrl_8", "mrl_4"}
    off = step(replace(CONFIG, vision_encoder=replace(CONFIG.vision_encoder, use_mrl=False)))
    torch.testing.assert_close(off.loss.detach(), off.logs["contrastive"])
    assert not any(name.startswith("mrl_") for name in off.logs)


def test_the_drawn_dimension_follows_the_seed_of_the_experiment_and_the_committed_step() -> None:
    def drawn(seed: int, steps: int = 24) -> list[str]:
        losses = replace(CONFIG.losses, sample_single_mrl_dim=True)
        model, data = build(replace(CONFIG, losses=losses, seed=seed)), batch()
        names = []
        for done in range(1, steps):
            model.commit(done)
            names += [name for name in model(data).logs if name.startswith("mrl_")]
        return names

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert set(drawn(0)) == {"mrl_8", "mrl_4"}


def test_a_commit_clamps_the_scale() -> None:
    model = build(CONFIG)
    model.loss.logit_scale.data.fill_(9.0)
    model.commit(1)
    assert model.loss.logit_scale.exp().item() == pytest.approx(100)
