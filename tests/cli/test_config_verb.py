"""`impresa config`: show, list, schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from impresa.cli.main import main
from impresa.config import load_experiment, read_config
from impresa.config.encoder import EncoderConfig
from impresa.config.paths import shipped_names
from impresa.config.reference import json_schema
from impresa.config.validate import experiment_from_tree
from tiny_run import finished_run


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["config", *argv]) == 0
    captured = capsys.readouterr()
    assert all(".checkpoint: runs/" in line for line in captured.err.splitlines())
    return captured.out


@pytest.mark.parametrize("name", [name for name in shipped_names() if name != "own"])  # which wants data
def test_what_is_shown_is_the_same_config_when_fed_back_in(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "shown.yaml"
    seed = "training.seed=7" if name in GUIDE else "seed=7"
    path.write_text(shown(capsys, "show", name, seed), encoding="utf-8")
    assert load_experiment(str(path)) == load_experiment(name, [seed])


GUIDE = {"default", "model", "training", "project"}


@pytest.mark.parametrize("words", ["shapes", "--config-name shapes", "--config-name=shapes", "shapes --json"])
def test_spellings_of_the_name(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "shown.yaml"
    overrides = ("optimization.lr=-0.5", "--optimization.lr", "0.5")
    path.write_text(shown(capsys, "show", *words.split(), *overrides), encoding="utf-8")
    assert read_config(path) == load_experiment("shapes", ["optimization.lr=0.5"])


def test_no_name_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "show") == shown(capsys, "show", "default")


def test_raw_is_the_tree_in_its_own_dialect(capsys: pytest.CaptureFixture[str]) -> None:
    tree = yaml.safe_load(shown(capsys, "show", "training", "model=tiny", "--raw"))
    assert set(tree) == {"model", "training", "project"}
    assert tree["training"]["data"]["image_size"] == 64
    raw = json.loads(shown(capsys, "show", "shapes", "--raw", "--json"))
    assert "fusion" not in raw
    assert experiment_from_tree(raw) == load_experiment("shapes")


def test_raw_is_checked_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "shapes", "--raw", "sede=1"]) == 2
    assert capsys.readouterr().err == "sede: unknown key; did you mean seed?\n"


def test_list_tells_every_name_and_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "list").splitlines()
    assert [line.split()[0] for line in lines] == shipped_names()
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)


@pytest.mark.parametrize("dialect", ["experiment", "memory_vlm"])
def test_schema(dialect: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(shown(capsys, "schema", "--dialect", dialect)) == json_schema(dialect)
    assert json.loads(shown(capsys, "schema")) == json_schema("experiment")


@pytest.mark.parametrize("action", ["list", "schema"])
def test_overrides_are_for_show_only(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", action, "seed=3"]) == 2
    assert capsys.readouterr().err == f"seed=3: impresa config {action} takes no overrides; leave it out\n"


def test_a_tower_of_a_run_is_shown_as_it_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    run = finished_run()
    theirs = read_config(run / "config.yaml")
    capsys.readouterr()  # of the training
    words = ("show", "shapes_vqa_trm", f"vision_encoder.checkpoint={run}")
    tree = yaml.safe_load(shown(capsys, *words))
    assert tree["vision_encoder"]["dim"] == theirs.vision_encoder.dim != EncoderConfig().dim
    assert tree["vision_encoder"]["checkpoint"] == str(run)
    assert tree["dataset"]["image_size"] == theirs.dataset.image_size


def test_a_run_that_is_not_there_is_said_and_its_widths_are_not_made_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["config", "show", "shapes_vqa_trm", "vision_encoder.freeze=false"]) == 0
    found = capsys.readouterr()
    assert found.err.startswith("vision_encoder.checkpoint: runs/shapes is no finished run here")
    tree = yaml.safe_load(found.out)
    assert tree["vision_encoder"] == {"checkpoint": "runs/shapes", "freeze": False}
    assert "image_size" not in tree["dataset"]
