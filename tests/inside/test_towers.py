"""Attention of a tower as maps: the right rows and columns of the right layer, and followed through all layers."""

from __future__ import annotations

import pytest
import torch

from impresa.encoders.tower import Tower
from impresa.encoders.vision import VisionEncoder
from impresa.errors import ConfigError
from impresa.inside.explanation import Bars, Maps
from impresa.inside.towers import SeenByTower, rollout
from impresa.layers.recording import Recorded, recording_attention, weights_within
from tiny_run import tiny_experiment
from tiny_vlm import answering, picture, tiny_vlm


def tower(*overrides: str) -> VisionEncoder:
    torch.manual_seed(0)
    config = tiny_experiment("vision_encoder.depth=2", *(f"vision_encoder.{override}" for override in overrides))
    model = VisionEncoder(config.vision_encoder, 16).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def recorded_pass(model: Tower) -> Recorded:
    with torch.no_grad(), recording_attention(model) as recorded:
        model(torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)), return_tokens=True)
    return recorded


def test_rollout_is_the_product_of_layers_with_half_of_each_token_kept() -> None:
    first, second = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    expected = torch.tensor([[0.5, 0.5], [0.5, 0.5]])  # (second + 1) / 2 @ (first + 1) / 2
    torch.testing.assert_close(rollout([first, second]), expected)
    torch.testing.assert_close(rollout([second]), torch.tensor([[1.0, 0.0], [0.25, 0.75]]))


@pytest.mark.parametrize("position", ["prepend", "append"])
def test_cls_and_memory_are_found_wherever_they_stand(position: str) -> None:
    model = tower(f"memory.memory_position={position}")
    recorded = recorded_pass(model)
    seen = SeenByTower(model, recorded, "last")
    weights = weights_within(recorded, model.backbone.blocks[1])[0][0].mean(dim=0)
    at = {"prepend": ([1, 2], [3, 4, 5, 6]), "append": ([5, 6], [1, 2, 3, 4])}[position]
    memory, patches = map(torch.tensor, at)
    torch.testing.assert_close(seen.memory, weights[memory][:, patches])
    by_title = {section.title: section for section in seen.sections()}
    assert list(by_title) == ["CLS", "Memory, as it reads", "Memory, as it looks", "Patches on memory"]
    cls, bars = by_title["CLS"], by_title["Patches on memory"]
    assert isinstance(cls, Maps)
    assert isinstance(bars, Bars)
    torch.testing.assert_close(cls.tiles[0].values, weights[0, patches].reshape(2, 2))
    assert list(bars.shares.values()) == pytest.approx(weights[patches][:, memory].mean(dim=0).tolist())


def test_the_order_of_the_sequence_moves_no_map() -> None:
    first, second = (SeenByTower(m, recorded_pass(m), "rollout") for m in map(of_position, ("prepend", "append")))
    torch.testing.assert_close(first.memory, second.memory)


def of_position(position: str) -> VisionEncoder:
    return tower(f"memory.memory_position={position}")


def test_rollout_differs_from_the_last_layer_and_adds_up() -> None:
    model = tower("memory.enabled=false", "use_perceiver=true", "perceiver_num_latents=3", "perceiver_num_heads=2")
    recorded = recorded_pass(model)
    last, whole = (SeenByTower(model, recorded, method) for method in ("last", "rollout"))
    assert not torch.allclose(last.latents, whole.latents)
    torch.testing.assert_close(whole.sequence.sum(dim=1), torch.ones(5))
    assert whole.latents.shape == (3, 4)
    assert (last.latents.sum(dim=1) < 1).all()  # the latents see one another too
    titles = [section.title for section in last.sections()]
    assert titles == ["Perceiver latents", "CLS"]


def test_the_pooling_query_is_shown_first() -> None:
    model = tower("use_attention_pooling=true", "memory.enabled=false")
    recorded = recorded_pass(model)
    first = SeenByTower(model, recorded, "last").sections()[0]
    assert isinstance(first, Maps)
    assert first.title == "Pooling query"
    expected = weights_within(recorded, model.pooling)[0][0].mean(dim=0).reshape(2, 2)
    torch.testing.assert_close(first.tiles[0].values, expected)


def test_a_tower_that_gives_nothing_away_is_refused_by_name() -> None:
    model = tower()
    with pytest.raises(ConfigError, match="attention of VisionTransformer cannot be shown"):
        SeenByTower(model, {}, "last")
    net = tower("backbone=convnet", "num_heads=8", "memory.enabled=false")
    with pytest.raises(ConfigError, match="backbone: a convnet has no attention to show; a vit, CLIP, SigLIP or DINOv"):
        SeenByTower(net, recorded_pass(net), "last")


def test_the_class_token_of_a_prefix_stands_for_where_it_looks() -> None:
    model = answering(tiny_vlm("decoder.prefix=cls_patches"))
    (section,) = (s for s in model.explain(picture(1), "how many?").sections if s.title.startswith("Prefix tokens on"))
    assert isinstance(section, Maps)
    tower = model.model.vision_encoder
    with torch.no_grad(), recording_attention(tower) as recorded:
        tower.read(model.preprocessing.image(picture(1))[None])
    looks = weights_within(recorded, tower.backbone.blocks[-1])[0][0].mean(dim=0)[0, 1:]
    maps = [tile.values.flatten() for tile in section.tiles[1:]]  # after their mean
    torch.testing.assert_close(torch.stack(maps), torch.cat([looks[None], torch.eye(4)]))


@pytest.mark.parametrize("strategy", ["concat", "cross_attention", "gated"])
def test_a_prefix_is_traced_back_to_the_patches(strategy: str) -> None:
    queries = () if strategy == "concat" else ("fusion.num_queries=3",)
    model = answering(tiny_vlm(f"fusion.strategy={strategy}", *queries))
    explained = model.explain(picture(1), "how many?")
    prefix = [section for section in explained.sections if section.title == "Prefix tokens on the picture"]
    if strategy == "concat":
        assert not prefix  # each is one patch, as the answer's maps show them
    else:
        (section,) = prefix
        assert isinstance(section, Maps)
        assert [tile.label.split(",")[0] for tile in section.tiles] == ["mean of 3", "prefix 1", "prefix 2", "prefix 3"]
