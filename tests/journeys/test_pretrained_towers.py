"""A user aligns pretrained towers on the embedded data, loses what they came from, and uses the run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

import impresa
import tiny_hub
from impresa.cli.main import main
from impresa.config import ExperimentConfig, to_yaml
from impresa.config.dataset import DatasetConfig, ShapesConfig
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import TrainerConfig
from impresa.config.optimization import OptimizationConfig
from impresa.config.types import LoggingConfig
from impresa.data.tokenizers import PretrainedTokenizer
from impresa.errors import CheckpointError
from impresa.training.run import train

TEXTS = ["a red circle", "the blue square left of the green triangle"]


def _experiment(vision: EncoderConfig, text: EncoderConfig) -> ExperimentConfig:
    return ExperimentConfig(
        dataset=DatasetConfig(
            batch_size=8, image_size=32, num_workers=0, shapes=ShapesConfig(num_train=24, num_val=8, num_test=8)
        ),
        vision_encoder=vision,
        text_encoder=text,
        optimization=OptimizationConfig(warmup_epochs=0, lr=1e-2, lr_pretrained=1e-3),
        trainer=TrainerConfig(epochs=1, accelerator="cpu", logging=LoggingConfig(tensorboard=False)),
    )


def _image() -> Image.Image:
    return Image.linear_gradient("L").resize((48, 40)).convert("RGB")


def test_a_run_needs_nothing_from_where_its_towers_came(tmp_path: Path) -> None:
    clip, bert = tiny_hub.clip(tmp_path / "hub/clip"), tiny_hub.bert(tmp_path / "hub/bert")
    vision = EncoderConfig(
        backbone=str(clip), embed_dim=16, use_perceiver=True, perceiver_num_latents=4, perceiver_num_heads=2
    )
    run_dir = train(_experiment(vision, EncoderConfig(backbone=str(bert), embed_dim=16)), tmp_path / "run", command=[])
    before = impresa.load(run_dir, "cpu")
    assert isinstance(before.preprocessing.tokenizer, PretrainedTokenizer)
    shutil.rmtree(tmp_path / "hub")
    after = impresa.load(shutil.move(run_dir, tmp_path / "moved"), "cpu")
    assert torch.equal(after.encode_image(_image()), before.encode_image(_image()))
    assert torch.equal(after.encode_text(TEXTS), before.encode_text(TEXTS))
    (tmp_path / "moved/backbones/vision_encoder/config.json").unlink()
    with pytest.raises(CheckpointError, match=r"backbones/vision_encoder/config\.json: is missing"):
        impresa.load(tmp_path / "moved", "cpu")


def test_frozen_clip_with_its_own_heads_stays_clip(tmp_path: Path) -> None:
    folder = tiny_hub.clip(tmp_path / "clip")
    tower = EncoderConfig(backbone=str(folder), embed_dim=20, projection="none", freeze=True)
    model = impresa.load(train(_experiment(tower, tower), tmp_path / "run", command=[]), "cpu")
    clip = transformers.CLIPModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = clip.get_text_features(**tokenizer(TEXTS, padding=True, return_tensors="pt")).pooler_output
    images = clip.get_image_features(model.preprocessing.image(_image())[None]).pooler_output
    torch.testing.assert_close(model.encode_text(TEXTS), F.normalize(texts, dim=-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.encode_image([_image()]), F.normalize(images, dim=-1), rtol=1e-5, atol=1e-5)


def test_training_moves_towers_that_are_not_frozen(tmp_path: Path) -> None:
    folder = tiny_hub.clip(tmp_path / "clip")
    frozen = EncoderConfig(backbone=str(folder), embed_dim=20, projection="none", freeze=True)
    free = EncoderConfig(backbone=str(folder), embed_dim=20, projection="none")
    run_dir = train(_experiment(frozen, free), tmp_path / "run", command=[])
    trained, start = load_file(run_dir / "model.safetensors"), load_file(folder / "model.safetensors")
    for name, tensor in start.items():
        tower, _, rest = name.partition(".")
        here = f"{tower.replace('_model', '_encoder')}.backbone.model.{rest}"
        assert here not in trained or torch.equal(trained[here], tensor) == (tower == "vision_model"), name


def test_a_wrong_backbone_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    towers = EncoderConfig(backbone=str(tmp_path / "nothing")), EncoderConfig(backbone=str(tmp_path / "nothing"))
    (tmp_path / "config.yaml").write_text(to_yaml(_experiment(*towers)))
    assert main(["train", str(tmp_path / "config.yaml"), "--output-dir", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "text_encoder.backbone: " in lines[-1]
    assert lines[-1].endswith("there is no such folder; give the path of one that was made by save_pretrained")
