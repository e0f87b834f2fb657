"""A user trains with relative paths, and uses, evaluates, continues and repeats the run from another folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import impresa
from impresa.cli.main import main
from impresa.config import load_experiment
from impresa.errors import CheckpointError, ConfigError
from impresa.run_dir.claim import claim
from impresa.training.run import train
from pictures import numbered, write_jsonl
from tiny_qwen import save_qwen
from tiny_run import TINY, without_charts
from tiny_vlm import tiny_qwen_vlm

SETTINGS = [*TINY, "trainer.epochs=1", "dataset.train_path=data", "dataset.val_fraction=0.3"]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folder of the training, which is the working directory, and another one that has `data` too."""
    without_charts(monkeypatch)
    write_jsonl(tmp_path / "a/data", numbered(10))
    write_jsonl(tmp_path / "b/data", [{"image": "0.png", "caption": "another"}] * 3)
    monkeypatch.chdir(tmp_path / "a")
    return tmp_path / "a", tmp_path / "b"


def test_a_run_is_evaluated_resumed_and_repeated_from_another_folder(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here, elsewhere = folders
    train(load_experiment("shapes", SETTINGS), Path("run"), command=[])
    assert "train_path: data\n" in (here / "run/config.yaml").read_text()
    recorded = json.loads((here / "run/paths.json").read_text())
    assert recorded == {"dataset.train_path": {"given": "data", "absolute": str(here / "data")}}
    assert main(["eval", "run", "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    assert before["num_images"] == 3

    monkeypatch.chdir(elsewhere)
    assert main(["eval", "../a/run", "--json"]) == 0
    captured = capsys.readouterr()
    assert "baseline" not in captured.err
    assert json.loads(captured.out) == {**before, "data": f"{here}/data, val split"}
    assert main(["train", "--output-dir", "../a/run", "--resume"]) == 0
    assert "this run has finished" in capsys.readouterr().err
    assert main(["train", "../a/run/config.yaml", "--dry-run"]) == 0
    assert "7 samples to train on" in capsys.readouterr().out

    shutil.rmtree(here / "data")
    shutil.rmtree(elsewhere / "data")
    assert main(["eval", "../a/run"]) == 2
    assert f"{here}/data: no such file or folder" in capsys.readouterr().err


def test_a_checkpoint_is_the_same_from_every_folder(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = folders
    train(load_experiment("shapes", SETTINGS), Path("run"), command=[])
    on_it = ["vision_encoder.checkpoint=run", "vision_encoder.freeze=false"]
    config = load_experiment("shapes", [*SETTINGS, *on_it])
    train(config, Path("second"), command=[])
    assert claim(here / "second", config, resume=True) is not None
    monkeypatch.chdir(elsewhere)
    assert claim(here / "second", load_experiment(here / "second/config.yaml"), resume=True) is not None
    with pytest.raises(ConfigError, match=rf"^vision_encoder\.checkpoint: was {here}/run and is {elsewhere}/run; "):
        claim(here / "second", config, resume=True)


def test_a_run_answers_from_another_folder_on_its_language_model(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = folders
    save_qwen(here / "models/qwen")
    config = tiny_qwen_vlm(Path("models/qwen"), "decoder.freeze=true", "trainer.epochs=1")
    train(config, Path("run"), command=[])
    expected = impresa.load("run", "cpu").ask("data/0.png", "what?")
    monkeypatch.chdir(elsewhere)
    assert impresa.load("../a/run", "cpu").ask("data/0.png", "what?") == expected
    shutil.rmtree(here / "models/qwen")
    with pytest.raises((CheckpointError, ConfigError), match=rf"{here}/models/qwen cannot be loaded; there is no such"):
        impresa.load("../a/run", "cpu")
