"""Names, files, inheritance, groups, overrides and interpolations, through the real entry point."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from impresa.config import ExperimentConfig, load_experiment, read_config, to_yaml
from impresa.config.compose import load_tree
from impresa.config.experiment import LabelsConfig
from impresa.config.memory_vlm import MemoryVLMConfig, to_experiment
from impresa.config.paths import shipped_folder, shipped_names
from impresa.config.validate import validate
from impresa.errors import ConfigError


def lines_of(name: str | None, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_experiment(name, overrides)
    assert all("\n" not in line for line in caught.value.lines)
    return list(caught.value.lines)


def written(folder: Path, text: str, name: str = "mine.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_config_loads_by_name_and_by_path_and_comes_back_from_its_own_yaml(name: str, tmp_path: Path) -> None:
    config = load_experiment(name)
    assert validate(config) == config
    assert load_experiment(f"configs/{name}.yaml") == config
    assert load_experiment(str(shipped_folder() / f"{name}.yaml")) == config
    path = written(tmp_path, to_yaml(config))
    assert load_experiment(path) == config
    assert read_config(Path(path)) == config


def test_the_profiles_are_there() -> None:
    documents = {"default", "model", "training", "project"}
    profiles = {"pixmo_alignment", "perceiver_mrl_alignment", "trm_vlm_qa_3b_reg", "shapes", "shapes_audio", "digits"}
    profiles |= {"clip", "shapes_vqa_trm", "shapes_vqa_qwen", "digits_vqa", "emoji", "spoken", "own"}
    assert documents | profiles <= set(shipped_names())
    assert {path.stem for path in (shipped_folder() / "model").glob("*.yaml")} == {"tiny", "base", "large", "huge"}


@pytest.mark.parametrize("name", [None, "default", "training"])
def test_the_guide_s_files_hold_the_guide_s_defaults(name: str | None) -> None:
    assert load_experiment(name) == to_experiment(MemoryVLMConfig())
    assert load_tree("training")["training"]["data"]["image_size"] == 224


def test_configs_are_found_where_there_is_no_such_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_experiment("configs/shapes.yaml") == load_experiment("shapes")
    assert not os.listdir(tmp_path)


def test_a_file_of_the_user_goes_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    written(tmp_path / "configs", "name: mine", "shapes.yaml")
    assert load_experiment("configs/shapes.yaml").name == "mine"
    assert load_experiment("shapes").name == "shapes"
    written(tmp_path, "name: other", "other.yml")
    assert load_experiment("other.yml").name == load_experiment(Path("other.yml")).name == "other"


UNKNOWN = [
    (".", ".: is a directory; name a YAML file in it, or a shipped config"),
    ("shape", "shape: unknown config; did you mean shapes? shipped are clip, default, "),
    ("zzz", "zzz: unknown config; shipped are clip, default, "),
    ("nowhere/shapes.yaml", "nowhere/shapes.yaml: there is no such file; shipped configs are clip, default, "),
    ("configs/shape.yaml", "configs/shape.yaml: unknown config; did you mean shapes?"),
    ("folder", "folder: is a directory; name a YAML file in it, or a shipped config"),
    ("", ": is a directory; name a YAML file in it, or a shipped config"),
    ("beside", "beside: unknown config; your file is named by its path, ./beside.yaml; shipped are "),
]


@pytest.mark.parametrize(("name", "line"), UNKNOWN)
def test_an_unknown_config(name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    written(tmp_path, "name: x", "beside.yaml")
    (told,) = lines_of(name)
    assert told.startswith(line)


def test_a_file_may_inherit_from_a_shipped_config_of_its_own_name(tmp_path: Path) -> None:
    path = written(tmp_path, "defaults: [shapes, _self_]\noptimization: {lr: 2e-3}\n", "shapes.yaml")
    assert load_experiment(path) == validate(
        replace(load_experiment("shapes"), optimization=replace(load_experiment("shapes").optimization, lr=2e-3))
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("defaults", ["[shapes]", "[shapes, _self_]"])
def test_what_a_file_says_goes_over_what_it_builds_on(defaults: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"defaults: {defaults}\nname: mine\n")
    assert load_experiment(path).name == "mine"
    path = written(tmp_path, "defaults: [_self_, shapes]\nname: mine\n")
    assert load_experiment(path).name == "shapes"


def test_a_file_may_choose_the_option_of_a_group(tmp_path: Path) -> None:
    path = written(tmp_path, "defaults: [training, override model: large, _self_]\nmodel: {depth: 3}\n")
    vision = load_experiment(path).vision_encoder
    assert (vision.dim, vision.depth) == (768, 3)
    assert load_experiment(path, ["model=tiny"]).vision_encoder.dim == 128


def test_a_default_that_does_not_exist(tmp_path: Path) -> None:
    path = written(tmp_path, "defaults: [shape, _self_]\n")
    (line,) = lines_of(path)
    assert line.startswith(f"{path}: its defaults name shape, which does not exist; did you mean shapes? there are ")
    (line,) = lines_of(written(tmp_path, "defaults: [training, override model: big]\n"))
    assert "its defaults name model/big, which does not exist" in line
    assert line.endswith("there are base, huge, large and tiny")


@pytest.mark.parametrize("defaults", ["mine", "3", "{a: b}", "[[a]]", "[mine]", "[{a: b, c: d}]"])
def test_defaults_that_cannot_be_used_are_one_line(defaults: str, tmp_path: Path) -> None:
    (line,) = lines_of(written(tmp_path, f"defaults: {defaults}\nseed: 1\n"))
    assert str(tmp_path) in line


OVERRIDES = [
    ("optimization.lr=1e-4", "optimization.lr", 1e-4),
    ("optimization.betas=[0.9, 0.995]", "optimization.betas", (0.9, 0.995)),
    ("optimization.betas=[0.9,0.995]", "optimization.betas", (0.9, 0.995)),
    ("+seed=3", "seed", 3),
    ("++seed=3", "seed", 3),
    ("dataset.val_path=null", "dataset.val_path", None),
    ("dataset.val_path=", "dataset.val_path", ""),
    ("dataset.train_path=a b/c=d,e{f", "dataset.train_path", "a b/c=d,e{f"),
    ("dataset.train_path='a,b'", "dataset.train_path", "a,b"),
    ("dataset.train_path=/data/[x]/y: z", "dataset.train_path", "/data/[x]/y: z"),
    ("dataset.train_path=C:\\data", "dataset.train_path", "C:\\data"),
    ("name='5'", "name", "5"),
    ("name=größe", "name", "größe"),
    ("name=5", "name", "5"),
    ("labels.version=1.0", "labels.version", "1.0"),
    ("labels.description=red, green [and] blue", "labels.description", "red, green [and] blue"),
    ("trainer.checkpoint.filename={epoch:03d}", "trainer.checkpoint.filename", "{epoch:03d}"),
    ("vision_encoder.memory={enabled: true, dim: 192}", "vision_encoder.memory.enabled", True),
    ("trainer.deterministic=TRUE", "trainer.deterministic", True),
    ("dataset.image_size=${vision_encoder.patch_size}", "dataset.image_size", 8),
    ("decoder.type=trm", "decoder.type", "trm"),
    ("trainer.checkpoint.filename={epoch}-{val_loss:.2f}", "trainer.checkpoint.filename", "{epoch}-{val_loss:.2f}"),
]


@pytest.mark.parametrize(("override", "key", "value"), OVERRIDES)
def test_an_override(override: str, key: str, value: object) -> None:
    found: object = load_experiment("shapes", [override])
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_a_mapping_is_merged_and_other_values_are_replaced() -> None:
    config = load_experiment("shapes", ["vision_encoder.memory={dim: 64}", "vision_encoder.memory.dim=96"])
    assert config.vision_encoder.memory.enabled
    assert config.vision_encoder.memory.dim == 96


REFUSED = [
    ("~seed", "~seed: keys cannot be deleted; set it to null or to its default"),
    ("seed", "seed: is no override; write key=value"),
    ("=3", "=3: is no key; write it as in optimization.lr=1e-4"),
    ("a..b=3", "a..b: is no key; write it as in optimization.lr=1e-4"),
    ("model/x=3", "model/x: is no key; write it as in optimization.lr=1e-4"),
    ("optimization.lr=1,2", "optimization.lr: 1,2 stands for several runs; give one value, a comma in quotes"),
    ("optimization.lr=choice(1,2)", "optimization.lr: choice(1,2) stands for several runs"),
    ("seed=range(1,5)", "seed: range(1,5) stands for several runs"),
    ("hydra.run.dir=x", "hydra.run.dir: configures Hydra itself"),
    ("optimisation.lr=3", "optimisation: unknown key; did you mean optimization?"),
    ("optimization.lr.x=3", "optimization.lr: got {x: 3}; it must be a number above 0"),
    ("optimization.lr=${nothing.here}", "optimization.lr: ${nothing.here} cannot be resolved"),
    ("optimization.lr=${optimization.lr}", "optimization.lr: ${optimization.lr} cannot be resolved"),
    ("optimization.lr=${", "optimization.lr: cannot be set to '${'"),
    ("optimization.lr=???", "optimization.lr: has no value yet (???); give it one"),
    ("seed=nan", "seed: got nan; it must be a whole number at least 0"),
    ("dataset.prompt_templates.x=3", "dataset.prompt_templates: got {x: 3}; it must be a list"),
]


@pytest.mark.parametrize(("override", "line"), REFUSED)
def test_a_refused_override(override: str, line: str) -> None:
    (told,) = lines_of("shapes", override)
    assert told.startswith(line)


def test_faults_of_overrides_and_values_are_told_in_one_go() -> None:
    lines = lines_of("training", "~seed", "model=big", "training.epochs=0", "project.tags=${x}", "modle.depth=3")
    assert {line.split(":")[0] for line in lines} == {"~seed", "model", "training.epochs", "project.tags", "modle"}


def test_an_unknown_option_of_a_group_lists_the_options() -> None:
    assert lines_of("training", "model=gigantic") == [
        "model: unknown option gigantic; it must be base, huge, large or tiny"
    ]


def test_a_group_that_the_config_does_not_choose() -> None:
    (line,) = lines_of("shapes", "model=large")
    assert line == "model: shapes does not choose a model, so it cannot be replaced; leave it out"


def test_interpolations_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRESA_TEST_DATA", "/somewhere")
    text = "name: a\nlabels: {description: 'about ${name}'}\ndataset: {train_path: '${oc.env:IMPRESA_TEST_DATA}'}\n"
    path = written(tmp_path, text)
    config = load_experiment(path)
    assert (config.labels.description, config.dataset.train_path) == ("about a", "/somewhere")
    monkeypatch.delenv("IMPRESA_TEST_DATA")
    (line,) = lines_of(path)
    assert line.startswith("dataset.train_path: ${oc.env:IMPRESA_TEST_DATA} cannot be resolved (")
    (line, _) = lines_of(written(tmp_path, "name: ${labels.version}\nlabels: {version: '${name}'}\n"))
    assert line.startswith("name: ${labels.version} cannot be resolved (")


def test_a_hydra_section_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "hydra: {run: {dir: x}}\n")
    assert lines_of(path) == [f"{path}: hydra: configures Hydra itself, which only composes files here; leave it out"]


ODD_TEXTS = [
    "${name}",
    r"\${name}",
    "5e-4",
    "1:30",
    "yes",
    "null",
    "~",
    " a\n b ",
    "größe ☃",
    "{x}",
    "[",
    "'\"",
    "-",
    "#",
]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_texts_come_back_from_yaml(text: str, tmp_path: Path) -> None:
    config = replace(ExperimentConfig(), labels=LabelsConfig(description=text, tags=(text,)))
    path = written(tmp_path, to_yaml(config))
    assert load_experiment(path) == config
    assert read_config(Path(path)) == config


def test_extreme_numbers_come_back_from_yaml(tmp_path: Path) -> None:
    config = load_experiment("shapes", ["optimization.lr=0.1", "optimization.eps=5e-324", "optimization.min_lr=1e-300"])
    assert read_config(Path(written(tmp_path, to_yaml(config)))) == config
    assert not math.isclose(config.optimization.eps, 0, abs_tol=0)
