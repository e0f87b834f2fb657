"""The way of a pretrained pair, with a small CLIP: measured before, fine-tuned by the profile, measured after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny_hub
from impresa.cli.main import main
from impresa.config import load_experiment
from impresa.config.relevance import notices
from tiny_run import finished_run, without_charts


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that put a small CLIP and small data in the place of the profile's."""
    folder = tiny_hub.clip(tmp_path_factory.mktemp("hub") / "clip")
    towers = [
        f"{part}.{key}" for part in ("vision_encoder", "text_encoder") for key in (f"backbone={folder}", "embed_dim=20")
    ]
    data = ["train_path=shapes", "batch_size=8", "image_size=32", "num_workers=0", "shapes.num_train=24"]
    return [*towers, *(f"dataset.{value}" for value in (*data, "shapes.num_val=8", "shapes.num_test=8"))]


def config_file(folder: Path, settings: list[str]) -> str:
    from impresa.config import to_yaml

    path = folder / "mine.yaml"
    path.write_text(to_yaml(load_experiment("clip", settings)))
    return str(path)


def test_the_profile_keeps_the_pair_and_sets_nothing_in_vain() -> None:
    config = load_experiment("clip")
    assert (config.vision_encoder.projection, config.text_encoder.projection) == ("auto", "auto")
    assert notices(config) == []


def test_a_pair_is_measured_trained_and_compared(
    tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_charts(monkeypatch)
    assert main(["eval", "clip", *settings, "--json"]) == 0
    before = capsys.readouterr()
    assert "clip: nothing was trained, these are the figures of the pretrained pair as it is" in before.err
    run_dir = str(tmp_path / "run")
    shortened = ["trainer.epochs=1", "trainer.accelerator=cpu", "trainer.logging.tensorboard=false"]
    assert main(["train", "clip", *settings, *shortened, "--output-dir", run_dir]) == 0
    capsys.readouterr()
    assert main(["eval", config_file(tmp_path, settings), run_dir, "--data", "shapes", "--json"]) == 0
    start, end = json.loads(capsys.readouterr().out)["figures"]["mrr"]["values"]
    assert start != end


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["shapes"], "vision_encoder.backbone: vit is no pretrained model, so that nothing can "),
        (["shapes_vqa_trm"], "decoder: answers nothing before it is trained; name a run"),
        (["clap", "--data", "shapes"], "clap: no such folder"),
        (["mine.yaml", "--data", "shapes"], "mine.yaml: unknown config; "),
        (["clip"], "dataset.train_path (training.data.train_path): photos does not exist; "),
        (["clip", "dataset.trainpath=x"], "dataset.trainpath: unknown key"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_one_line(
    words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_run()
    monkeypatch.chdir(tmp_path)
    assert main(["eval", *words]) == 2
    (found,) = capsys.readouterr().err.splitlines()
    assert found.startswith(line)


def test_new_heads_are_called_new(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    other = [setting.replace("embed_dim=20", "embed_dim=12") for setting in settings]
    assert main(["eval", "clip", *other, "--json"]) == 0
    assert (
        "clip: nothing was trained, and the heads are new: these are the figures of chance" in capsys.readouterr().err
    )
