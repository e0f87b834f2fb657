"""Image and text tower of one pretrained model: `projection: auto` keeps what joins them, or says why it cannot."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny_hub
from impresa.config import prepare, read_config
from impresa.config.decoder import TowerLoraConfig
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.data.sources import open_source, reading_of
from impresa.errors import ConfigError
from impresa.layers.mlp import MLP
from impresa.run_dir.load import load_embedder
from impresa.tasks import task_of
from impresa.training.run import train
from tiny_pair import pair_experiment
from tiny_run import finished_run, tiny_experiment, without_charts

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hub")
    makers = (tiny_hub.clip, tiny_hub.siglip, tiny_hub.dinov2, tiny_hub.bert)
    return {make.__name__: make(root / make.__name__) for make in makers}


def start(config: ExperimentConfig) -> Any:
    """The model as training starts from it."""
    task = task_of(prepare(config))
    return task.build(task.prepare(open_source(config.dataset, "train", reading_of(config))))


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "auto is mlp" in record.getMessage()]


@pytest.mark.parametrize(("name", "width", "length"), [("clip", 20, 6), ("siglip", 32, 16)])
def test_a_pair_starts_as_the_pretrained_model(
    hub: dict[str, Path], name: str, width: int, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    theirs = transformers.AutoModel.from_pretrained(hub[name])
    ids = (
        torch.tensor([[1, 4, 6, 7, 0, 0], [1, 5, 6, 9, 8, 0]]) if name == "clip" else torch.randint(1, 15, (2, length))
    )
    model = start(pair_experiment(hub[name], width)).eval()
    image, text = model.embed_image(IMAGES), model.embed_text(ids)
    torch.testing.assert_close(image, theirs.get_image_features(IMAGES).pooler_output, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(text, theirs.get_text_features(ids).pooler_output, rtol=1e-5, atol=1e-5)
    assert lines(caplog) == []


def test_a_width_that_is_not_the_pairs_own_gets_an_mlp_and_a_line(
    hub: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model = start(pair_experiment(hub["clip"], 12))
    assert not model.vision_encoder.has_own_head
    assert isinstance(model.text_encoder.projection, MLP)
    assert lines(caplog) == [
        "vision_encoder.projection and text_encoder.projection: auto is mlp here, no own head gives embed_dim 12 "
        "(theirs give 20; set it to that to keep them)"
    ]


@pytest.mark.parametrize("change", ["another text tower", "mlp", "mean", "perceiver", "scratch", "audio"])
def test_towers_that_are_no_whole_pair_get_an_mlp_and_a_line(
    hub: dict[str, Path], change: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = pair_experiment(hub["clip"], 20)
    vision, text = config.vision_encoder, config.text_encoder
    config = {
        "another text tower": replace(config, text_encoder=replace(text, backbone=str(hub["bert"]))),
        "mlp": replace(config, text_encoder=replace(text, projection="mlp")),
        "mean": replace(config, text_encoder=replace(text, pooling="mean")),
        "perceiver": replace(config, vision_encoder=replace(vision, use_perceiver=True, perceiver_num_heads=2)),
        "scratch": tiny_experiment("vision_encoder.projection=auto"),
        "audio": replace(config, audio_encoder=replace(vision, backbone="spectrogram", dim=16, depth=1, num_heads=2)),
    }[change]
    prepared = prepare(config)
    asked = [
        name for name in ("vision_encoder", "text_encoder", "audio_encoder") if _projection(config, name) == "auto"
    ]
    lost = [name for name in asked if _projection(prepared, name) == "mlp"]
    assert lost == (["audio_encoder"] if change == "audio" else asked)
    (line,) = lines(caplog)
    assert line.startswith(" and ".join(f"{name}.projection" for name in lost) + ": auto is mlp here")
    assert prepare(prepared) == prepared
    assert len(lines(caplog)) == 1


def _projection(config: ExperimentConfig, part: str) -> str | None:
    return getattr(getattr(config, part), "projection", None)


def test_a_trained_pair_is_used_without_its_origin_and_stood_on(
    hub: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_charts(monkeypatch)
    folder = Path(shutil.copytree(hub["clip"], tmp_path / "clip"))
    run_dir = train(pair_experiment(folder, 20), tmp_path / "run", command=[])
    shutil.rmtree(folder)
    model = load_embedder(run_dir, "cpu")
    assert model.model.vision_encoder.has_own_head
    assert read_config(run_dir / "config.yaml").vision_encoder.projection == "auto"
    text = EncoderConfig(backbone="transformer", dim=16, depth=1, num_heads=2, embed_dim=20)
    on_it = replace(
        pair_experiment(folder, 20),
        vision_encoder=EncoderConfig(checkpoint=str(run_dir), embed_dim=20),
        text_encoder=text,
    )
    torch.testing.assert_close(start(on_it).embed_image(IMAGES), model.model.embed_image(IMAGES))


def test_adapters_are_kept_in_the_run_and_stay_frozen_in_what_stands_on_it(
    hub: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_charts(monkeypatch)
    config = pair_experiment(hub["clip"], 20, lora=TowerLoraConfig(r=2))
    run_dir = train(config, tmp_path / "run", command=[])
    model = load_embedder(run_dir, "cpu").model
    moved = [name for name, value in model.state_dict().items() if "lora_B" in name and value.abs().max() > 0]
    assert len(moved) == 24  # q, k, v, out, fc1 and fc2 of two blocks in two towers
    stored, start_of_it = model.vision_encoder.state_dict(), start(pair_experiment(hub["clip"], 20)).vision_encoder
    for name, value in start_of_it.state_dict().items():
        layer, _, kind = name.rpartition(".")
        assert torch.equal(value, stored[name if name in stored else f"{layer}.base_layer.{kind}"]), name
    text = EncoderConfig(backbone="transformer", dim=16, depth=1, num_heads=2, embed_dim=20)
    vision = EncoderConfig(checkpoint=str(run_dir), embed_dim=20)
    on_it = start(replace(config, vision_encoder=vision, text_encoder=text))
    torch.testing.assert_close(on_it.vision_encoder.eval()(IMAGES).pooled, model.embed_image(IMAGES))
    assert not any(parameter.requires_grad for parameter in on_it.vision_encoder.parameters())
    lines = r"^vision_encoder\.lora: is .*r.*2.* in .*; leave it out$"
    with pytest.raises(ConfigError, match=lines):
        prepare(replace(config, vision_encoder=replace(vision, lora=TowerLoraConfig(r=3)), text_encoder=text))


def test_the_last_block_of_a_tower_of_a_run_is_trained_on(tmp_path: Path) -> None:
    config = tiny_experiment(f"vision_encoder.checkpoint={finished_run()}", "vision_encoder.unfreeze_last=1")
    tower = start(config).vision_encoder
    silent = {name.split(".")[1] for name, parameter in tower.named_parameters() if not parameter.requires_grad}
    assert silent == {"patch_embedding", "cls", "positions", "memory", "transformer"}
    assert all(parameter.requires_grad for parameter in tower.backbone.blocks.parameters())
    assert tower.head.weight.requires_grad
    with pytest.raises(ConfigError, match=r"^vision_encoder\.unfreeze_last: 2 blocks, but the tower has 1"):
        start(replace(config, vision_encoder=replace(config.vision_encoder, unfreeze_last=2)))
