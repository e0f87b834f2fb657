"""The commands of both specifications run as they are written, on the exported shapes; tiny overrides are appended."""

from __future__ import annotations

import runpy
import shlex
import sys
from pathlib import Path

import pytest

import impresa
from impresa.cli.main import main
from impresa.tasks.alignment.embedder import EmbeddingModel
from tiny_run import without_charts

ROOT = Path(__file__).parents[2]
SMALL_MODEL = (
    *("model.image_size=16", "model.patch_size=8", "model.embed_dim=16", "model.depth=1", "model.num_heads=2"),
    *("model.memory.dim=16", "model.text.embed_dim=16", "model.text.depth=1", "model.text.num_heads=2"),
)
QUICK = (*SMALL_MODEL, "training.data.num_workers=0", "training.logging.wandb=false")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the guide's default data in it."""
    folder = tmp_path_factory.mktemp("workplace")
    counts = ["--num-train", "12", "--num-val", "8", "--num-test", "4", "--image-size", "16"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["data", "export", "shapes", "data", *counts]) == 0
    return folder


def run(command: str, *more: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> EmbeddingModel:
    """Run `python train.py ...` or `impresa ...` as a shell would; returns the trained model."""
    program, *words = shlex.split(command)
    with pytest.MonkeyPatch.context() as patch:
        without_charts(patch)
        patch.chdir(folder)
        if program == "python":
            script, *words = words
            patch.setattr(sys, "argv", [script, *words, *more])
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(ROOT / script), run_name="__main__")
            assert ended.value.code == 0
        else:
            assert main([*words, *more]) == 0
        return impresa.load(capsys.readouterr().out.splitlines()[-1], "cpu")


def test_override_single_values(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "python train.py training.epochs=50 model.memory.num_memory_tokens=128"
    model = run(command, *QUICK, "training.logging.tensorboard=false", folder=workplace, capsys=capsys)
    assert model.config.trainer.epochs == 50
    assert model.config.vision_encoder.memory.num_memory_tokens == 128
    assert model.model.vision_encoder.backbone.memory.tokens.shape == (128, 16)


def test_override_nested_values(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = 'python train.py training.optimizer_kwargs.betas="[0.9, 0.995]"'
    model = run(command, *QUICK, "training.epochs=1", folder=workplace, capsys=capsys)
    assert model.config.optimization.betas == (0.9, 0.995)


def test_use_config_groups(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "python train.py --config-name=training model=large"
    model = run(command, *QUICK, "training.epochs=1", folder=workplace, capsys=capsys)
    assert model.config.labels.model == "memory_clip_vit_l_14"
    assert model.config.vision_encoder.memory.num_memory_tokens == 128


def test_debug_mode_with_wandb_and_workers_as_the_guide_has_them(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "python train.py training.batch_size=2 training.epochs=1"
    model = run(command, *SMALL_MODEL, "training.data.num_workers=1", folder=workplace, capsys=capsys)
    assert model.config.dataset.batch_size == 2
    run_dir = max((workplace / "runs" / "default").iterdir())
    assert list((run_dir / "wandb").glob("offline-run-*"))


def test_a_yaml_file_by_its_path_with_options_for_overrides(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ("dataset.shapes.num_train=8", "dataset.shapes.num_val=8", "dataset.shapes.num_test=8")
    small = ("vision_encoder.depth=1", "text_encoder.depth=1", "trainer.epochs=1")
    command = "impresa train configs/shapes.yaml --optimization.lr 1e-4"
    model = run(command, *tiny, *small, folder=workplace, capsys=capsys)
    assert model.config.optimization.lr == 1e-4
