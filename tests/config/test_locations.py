"""Paths of a run lead where they led in training, and a model that looks like a path is not asked of the hub."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from impresa import hub
from impresa.config import ExperimentConfig, load_experiment, prepare, read_config, to_yaml
from impresa.config.encoder import EncoderConfig
from impresa.config.locations import paths_of, record_of
from impresa.errors import CheckpointError, ConfigError


def with_backbone(name: str) -> ExperimentConfig:
    return ExperimentConfig(
        vision_encoder=EncoderConfig(backbone=name), text_encoder=EncoderConfig(backbone="transformer")
    )


def write_run(folder: Path, *overrides: str) -> Path:
    """The config file of a run that was started in the working directory."""
    config = load_experiment("shapes", overrides)
    folder.mkdir(parents=True)
    (folder / "paths.json").write_text(json.dumps(record_of(config)))
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder / "config.yaml"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, where the user works; `other` is beside it."""
    for folder in ("here/data", "here/models/clip", "other"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_every_path_is_recorded_as_given_and_in_full(place: Path) -> None:
    overrides = ("dataset.train_path=data", "dataset.val_path=~/data", "dataset.test_path='data/*.parquet'")
    overrides += ("dataset.image_root=images", "dataset.class_names=names.txt")
    config = replace(with_backbone("models/clip"), dataset=load_experiment("shapes", overrides).dataset)
    here = f"{place}/here"
    assert record_of(config) == {
        "dataset.train_path": {"given": "data", "absolute": f"{here}/data"},
        "dataset.val_path": {"given": "~/data", "absolute": f"{here}/data"},
        "dataset.test_path": {"given": "data/*.parquet", "absolute": f"{here}/data/*.parquet"},
        "dataset.image_root": {"given": "images", "absolute": f"{here}/images"},
        "dataset.class_names": {"given": "names.txt", "absolute": f"{here}/names.txt"},
        "vision_encoder.backbone": {"given": "models/clip", "absolute": f"{here}/models/clip"},
    }
    assert paths_of(load_experiment("shapes", ("dataset.class_names=[cat,dog]",))) == {}
    assert record_of(load_experiment("shapes")) == {}
    assert paths_of(with_backbone("openai/clip-vit-base-patch32")) == {}
    assert paths_of(load_experiment("shapes_vqa_trm")) == {"vision_encoder.checkpoint": "runs/shapes"}


def test_a_config_of_a_run_is_read_from_any_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_run(place / "here/run", "dataset.train_path=data")
    assert read_config(file).dataset.train_path == "data"
    monkeypatch.chdir(place / "other")
    assert read_config(file).dataset.train_path == f"{place}/here/data"
    (place / "other/data").mkdir()
    assert read_config(file).dataset.train_path == f"{place}/here/data"
    assert load_experiment(file).dataset.train_path == f"{place}/here/data"
    assert load_experiment(file, ["dataset.train_path=data"]).dataset.train_path == "data"


def test_shards_of_a_run_are_found_from_any_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = ("dataset.train_path='s3://bucket/{00..09}.tar'", "dataset.val_path='data/{00..09}.tar'")
    file = write_run(place / "here" / "run", *addresses)
    monkeypatch.chdir(place / "other")
    dataset = load_experiment(str(file)).dataset
    assert dataset.train_path == "s3://bucket/{00..09}.tar"
    assert dataset.val_path == f"{place}/here/data/{{00..09}}.tar"


def test_on_another_machine_a_path_is_looked_for_where_the_user_is(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_run(place / "here/run", "dataset.train_path=data")
    monkeypatch.chdir(place / "other")
    (place / "here/data").rmdir()
    assert read_config(file).dataset.train_path == f"{place}/here/data"  # messages name where it was
    (place / "other/data").mkdir()
    assert read_config(file).dataset.train_path == "data"


def test_a_path_that_was_changed_by_hand_is_the_users(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_run(place / "here/run", "dataset.train_path=data")
    file.write_text(file.read_text().replace("train_path: data", "train_path: mine"))
    monkeypatch.chdir(place / "other")
    assert read_config(file).dataset.train_path == "mine"


@pytest.mark.parametrize("text", ["{", "[]", '{"dataset.train_path": 3}', '{"dataset.train_path": {}}', "[" * 100_000])
def test_a_damaged_record_is_one_line(text: str, place: Path) -> None:
    file = write_run(place / "here/run", "dataset.train_path=data")
    file.with_name("paths.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"^.*paths\.json: .*; remove it, and name paths"):
        read_config(file)


LOCAL = {
    "./clip": "there is no such folder; give",
    "../clip": "there is no such folder; give",
    ".": None,
    "~/clip": "there is no such folder; give",
    "~nobody-at-all/clip": "there is no such folder; give",
    "/clip": "there is no such folder; give",
    "clip/": "there is no such folder; give",
    "a/b/clip": "there is no such folder; give",
    "models/clap": "there is no such folder, and models is a folder here, so the hub is not asked; give",
    "weights/clip.safetensors": "there is no such folder; give",
    "clip.bin": "there is no such folder; give",
    "a\\clip": "there is no such folder; give",
    "notes.txt": "it is a file and no folder; give",
}


@pytest.mark.parametrize("name", LOCAL)
def test_a_name_that_looks_local_is_never_asked_of_the_hub(name: str, place: Path) -> None:
    Path("notes.txt").touch()
    message = LOCAL[name]
    if message is None:
        prepare(with_backbone(name))
        return
    end = "" if name in ("notes.txt", "/clip", "~/clip") else f" (looked in {place}/here)"
    line = (
        f"vision_encoder.backbone: {name} cannot be loaded; {message} the path of one that was made by save_pretrained"
    )
    with pytest.raises(ConfigError) as caught:
        prepare(with_backbone(name))
    assert str(caught.value) == line + end
    with pytest.raises(ConfigError) as caught, hub.reading("vision_encoder.backbone", name):
        pytest.fail("it was asked for")
    assert str(caught.value) == line + end


@pytest.mark.parametrize("name", ["openai/clip-vit-base-patch32", "Qwen/Qwen2.5-3B", "gpt2", "models/clip", "timm:vit"])
def test_other_names_may_be_of_the_hub(name: str, place: Path) -> None:
    prepare(with_backbone(name))


def test_missing_data_say_where_they_were_looked_for(place: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"^dataset\.train_path .*: photos does not exist; .* \(looked in {place}/here\)$"
    ):
        prepare(load_experiment("shapes", ["dataset.train_path=photos"]))
    with pytest.raises(ConfigError, match=r"embedded data$"):
        prepare(load_experiment("shapes", ["dataset.train_path=/photos"]))
