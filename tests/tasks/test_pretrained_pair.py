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
from impresa.config.experiment import EncoderConfig, ExperimentConfig
from impresa.data.sources import open_source, reading_of
from impresa.layers.mlp import MLP
from impresa.run_dir.load import load_embedder
from impresa.tasks import task_of
from impresa.training.run import train
from tiny_pair import pair_experiment
from tiny_run import tiny_experiment, without_charts

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
