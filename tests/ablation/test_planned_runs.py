"""The runs of a study: their order, their folders, and that the command line of each gives the very config."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from impresa.ablation.plan import PlannedRun, plan
from impresa.ablation.study import Study, make_study
from impresa.cli.main import main
from impresa.config import ExperimentConfig, to_yaml
from impresa.errors import ConfigError, TrainingError
from impresa.run_dir.layout import CONFIG, MANIFEST
from tiny_run import tiny_experiment

NAMED = """\
base: {base}
overrides:
  labels: {{description: "it's a, b: 'c'", version: "1.0"}}
  dataset.prompt_templates: ["a {{}}", "{{}}, or null"]
switches:
  loss: {{both of them: {{losses: {{type: siglip, temperature: 0.2}}}}}}
  optimization.betas: [[0.9, 0.98], [0.8, 0.9]]
  dataset.val_path: [null, "{folder}/a=b, c"]
seeds: [3, 1]
null: true
"""


def study_of(name: str, *overrides: str, **given: Any) -> Study:
    return make_study(name, overrides, **{"seeds": None, "metrics": None, "design": None, "null": False} | given)


def trained(run: PlannedRun, patch: pytest.MonkeyPatch, folder: Path) -> ExperimentConfig:
    """The config that `impresa train` trains with the words of a run."""
    seen: list[ExperimentConfig] = []

    def train(config: ExperimentConfig, output_dir: Path, **_: Any) -> None:
        seen.append(config)
        raise TrainingError("seen")

    patch.setattr("impresa.training.run.train", train)
    assert main(["train", *run.words, "--output-dir", str(folder)]) == 2
    return seen[0]


def test_runs_come_seed_by_seed_with_the_base_first() -> None:
    runs = plan(study_of("shapes", "losses.type=clip,siglip", seeds=[4, 2], null=True))
    assert [(run.variant.name, run.seed, run.config.seed) for run in runs] == [
        *(("base", 4, 4), ("losses.type=siglip", 4, 4), ("null", 4, 1_000_004)),
        *(("base", 2, 2), ("losses.type=siglip", 2, 2), ("null", 2, 1_000_002)),
    ]
    assert len({run.folder for run in runs}) == 6
    assert all(re.fullmatch(r"runs/[0-9a-f]{16}", run.folder) for run in runs)
    assert runs[1].words == ("shapes", "losses.type=siglip", "seed=4")


GUIDE = ("training.data.train_path=shapes", "training.data.val_path=shapes", "training.epochs=2")
STUDIES = [
    ("shapes", ("vision_encoder.memory.enabled=true,false", "name=a b"), "one-at-a-time"),
    ("default", (*GUIDE, "model=tiny,base", "training.optimizer=adamw,sgd"), "grid"),
]


@pytest.mark.parametrize(("name", "overrides", "design"), STUDIES)
def test_the_words_of_a_run_train_its_config(
    name: str, overrides: tuple[str, ...], design: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = plan(study_of(name, *overrides, seeds=1, design=design, null=True))
    assert len({run.folder for run in runs}) == len(runs) > 2
    for run in runs:
        assert trained(run, monkeypatch, tmp_path / "run") == run.config


def test_the_words_of_a_run_hold_any_text_and_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a=b, c").mkdir()
    (tmp_path / "year=1").mkdir()
    (tmp_path / "year=1" / "base.yaml").write_text("defaults: [shapes]\nvision_encoder: {depth: 1}")
    (tmp_path / "study.yaml").write_text(NAMED.format(base="year=1/base.yaml", folder=tmp_path))
    monkeypatch.chdir(tmp_path)
    runs = plan(study_of("study.yaml"))
    assert [run.variant.name for run in runs[:4]] == [
        *("base", "loss=both of them", "optimization.betas=[0.8,0.9]", f"dataset.val_path={tmp_path}/a=b, c")
    ]
    assert (runs[0].config.labels.description, runs[0].config.labels.version) == ("it's a, b: 'c'", "1.0")
    for run in runs:
        assert trained(run, monkeypatch, tmp_path / "run") == run.config


def test_a_run_on_another_run_is_planned_as_it_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / MANIFEST).write_text("{}")
    (tmp_path / CONFIG).write_text(to_yaml(tiny_experiment()))
    tower = f"vision_encoder.checkpoint={tmp_path}"
    switches = ("decoder.recursion.num_cycles=1,2", "decoder.generation.max_new_tokens=4")
    study = study_of("shapes_vqa_trm", tower, "decoder.prefix_layer=last", *switches, seeds=1)
    assert study.metrics == ("exact_match",)
    runs = plan(study)
    assert [trained(run, monkeypatch, tmp_path / "run") for run in runs] == [run.config for run in runs]


def test_switches_seeds_labels_and_another_working_directory_leave_planned_runs_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folders(*more: str, seeds: int = 2) -> set[str]:
        study = study_of("shapes", "losses.type=clip,siglip", *more, seeds=seeds, null=True)
        return {run.folder for run in plan(study)}

    before = folders()
    monkeypatch.chdir(tmp_path)
    assert folders() == folders("name=other", "dataset.num_workers=1", "labels.version=2") == before
    assert before < folders("vision_encoder.depth=2,3", seeds=3)
    assert before.isdisjoint(folders("trainer.epochs=2"))


def test_nothing_is_planned_where_one_variant_has_a_fault() -> None:
    study = study_of("shapes", "vision_encoder.num_heads=3,5", "losses.type=siglip,triplet", "optimization.lr=-1,1e-3")
    with pytest.raises(ConfigError) as caught:
        plan(study)
    assert [line.split(":")[0] for line in caught.value.lines] == [
        *("vision_encoder.num_heads=3", "vision_encoder.num_heads=5", "losses.type=triplet", "optimization.lr=-1")
    ]
