"""The specification's three profiles, on PixMo-shaped parquet, with small local models in place of the real ones."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import impresa
import tiny_hub
from impresa.cli.main import main
from impresa.config.dataset import ShapesConfig
from impresa.data.sources import Reading
from impresa.data.sources.shapes import ShapesSource
from run_metrics import numbers
from tiny_qwen import save_qwen
from tiny_run import without_charts

SMALL = (
    *("dataset.image_size=32", "dataset.batch_size=8", "dataset.num_workers=0"),
    *("optimization.precision=32-true", "optimization.warmup_epochs=0", "trainer.accelerator=cpu"),
    *("trainer.logging.tensorboard=false", "trainer.logging.log_interval=1"),
)
ALIGNMENT = (
    *("optimization.lr=1e-3", "optimization.lr_pretrained=1e-3", "dataset.val_fraction=0.333", "trainer.epochs=80"),
    *("trainer.logging.eval_interval=80", "trainer.logging.save_interval=80"),
)
"""Eight training rows of twelve, all of them in every step: the loss of a batch depends on its rows' number."""
QUESTIONS = ("optimization.lr=1e-2", "dataset.val_fraction=0.25", "trainer.epochs=6")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    without_charts(monkeypatch)


def pixmo(path: Path, num: int, *, questions: bool = False) -> Path:
    """`num` rows of image bytes and a caption, or of image bytes, a flattened dialogue and the answer to its end."""
    source = ShapesSource(ShapesConfig(num_train=num), "train", 40, Reading(dialogues=True))
    rows = []
    for i in range(num):
        sample, file = source[i], io.BytesIO()
        assert sample.image is not None
        sample.image.save(file, "PNG")
        row = {"image": {"bytes": file.getvalue(), "path": None}}
        turn = sample.dialogues[0].turns[0]
        said = {"question": f"[USER] {turn.question} [ASSISTANT]", "answer": turn.answer}
        rows.append({**row, **(said if questions else {"caption": sample.captions[0]})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def losses(run_dir: Path) -> list[float]:
    return [row["train_loss"] for row in numbers(run_dir, "train_loss") if row]


def fell(values: list[float]) -> bool:
    """Whether the loss of the last steps is clearly below that of the first."""
    return sum(values[-6:]) / 6 < 0.85 * sum(values[:3]) / 3


@pytest.mark.parametrize("profile", ["pixmo_alignment", "perceiver_mrl_alignment"])
def test_alignment_profiles(profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, clip = pixmo(tmp_path / "pixmo.parquet", 12), tiny_hub.clip(tmp_path / "clip")
    small = [
        *(*SMALL, *ALIGNMENT, f"dataset.train_path={data}"),
        *(f"vision_encoder.backbone={clip}", f"text_encoder.backbone={clip}"),
    ]
    if profile == "perceiver_mrl_alignment":
        small.append("vision_encoder.perceiver_num_heads=2")
    assert main(["train", profile, "--output-dir", str(tmp_path / "run"), *small]) == 0, capsys.readouterr().err
    assert fell(losses(tmp_path / "run"))
    model = impresa.load(tmp_path / "run", "cpu")
    width = {"pixmo_alignment": 4096, "perceiver_mrl_alignment": 512}[profile]
    assert model.encode_text("a red circle").shape == (width,)
    assert model.encode_text("a red circle", dim=128).shape == (128,)


def test_question_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pixmo(tmp_path / "qa.parquet", 48, questions=True)
    clip, qwen = tiny_hub.clip(tmp_path / "clip"), save_qwen(tmp_path / "qwen")
    small = [
        *(*SMALL, *QUESTIONS, f"dataset.train_path={data}"),
        *(f"vision_encoder.backbone={clip}", f"text_encoder.backbone={clip}"),
        *(f"decoder.model={qwen}", "vision_encoder.perceiver_num_heads=2", "trainer.accumulate_grad_batches=1"),
    ]
    command = ["train", "trm_vlm_qa_3b_reg", "--output-dir", str(tmp_path / "run"), *small]
    assert main(command) == 0, capsys.readouterr().err
    assert fell(losses(tmp_path / "run"))
    assert impresa.load(tmp_path / "run", "cpu").ask(first_image(tmp_path), "how many shapes can you see?")


def first_image(folder: Path) -> Path:
    source = ShapesSource(ShapesConfig(num_train=1), "train", 40)
    image = source[0].image
    assert image is not None
    image.save(folder / "a.png")
    return folder / "a.png"
