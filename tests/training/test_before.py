"""A run of a pretrained pair says what it started from: measured once, before the first step."""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_hub
from impresa.cli.main import main
from impresa.config import ExperimentConfig, prepare
from impresa.config.decoder import TowerLoraConfig
from impresa.config.encoder import EncoderConfig
from impresa.data.sources import open_source, reading_of
from impresa.evaluation.figures import figures
from impresa.evaluation.results import Evaluation, read_evaluation
from impresa.reports.html import render_report
from impresa.reports.tables import make_tables
from impresa.run_dir.manifest import checksum
from impresa.tasks import task_of
from impresa.tasks.alignment.evaluate import evaluate
from impresa.tasks.alignment.untrained import untrained
from impresa.training.before import measure_before
from impresa.training.parts import build_parts
from impresa.training.run import train
from tiny_pair import pair_experiment
from tiny_run import copy_of_run, finished_run, tiny_experiment, without_charts


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    config = pair_experiment(tiny_hub.clip(tmp_path_factory.mktemp("hub") / "clip"), 20)
    return replace(config, trainer=replace(config.trainer, deterministic=True))


@pytest.fixture(scope="module")
def run_dir(config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        without_charts(patch)
        return train(config, tmp_path_factory.mktemp("runs") / "run", command=[])


def results(run_dir: Path) -> Evaluation:
    evaluation = read_evaluation(run_dir)
    assert evaluation is not None
    return evaluation


def test_before_and_after_stand_side_by_side(
    config: ExperimentConfig, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation, asked = results(run_dir), prepare(config)
    source = open_source(asked.dataset, "test", reading_of(asked, labels=True))
    pair = figures(evaluate(untrained(asked, "cpu"), source, data="test"))
    assert evaluation.before == pytest.approx(pair)
    table = make_tables(evaluation)[0]
    assert (table.title, table.columns) == ("Before and after", ("before", "after", "difference"))
    (row,) = (row for row in table.groups[""] if row.name == "R@5")
    before, after = pair["recall_at_5"], figures(evaluation)["recall_at_5"]
    assert row.cells == (f"{before:.1%}", f"{after:.1%}", f"{100 * (after - before):+.1f}".replace("-0.0", "+0.0"))
    line = f"| R@5 | {' | '.join(row.cells)} |"
    assert line in (run_dir / "README.md").read_text()
    assert "Before and after" in render_report(run_dir)
    for words in (["eval", str(run_dir)], ["eval", str(run_dir), "--split", "val"]):
        assert main([*words, "--device", "cpu"]) == 0
        assert ("Before and after" in capsys.readouterr().out) == ("--split" not in words)
    assert results(run_dir).before == evaluation.before


def test_it_is_said_at_once(config: ExperimentConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    measure_before(config, build_parts(config, None), tmp_path, torch.device("cpu"))
    (line,) = (line for record in caplog.records if (line := record.getMessage()).startswith("before training"))
    assert line.startswith("before training, shapes, test split: 8 images, 8 captions")
    assert re.search(r": R@1 [0-9.]+%, R@5 [0-9.]+%, R@10 [0-9.]+%, MRR 0\.", line)


def test_measuring_leaves_the_training_as_it_is(
    config: ExperimentConfig, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_charts(monkeypatch)
    monkeypatch.setattr("impresa.training.before.measure_before", lambda *_: None)
    plain = train(config, tmp_path / "plain", command=[])
    assert not results(plain).before
    assert checksum(run_dir / "model.safetensors") == checksum(plain / "model.safetensors")


def test_a_resumed_run_keeps_what_it_had_measured(
    config: ExperimentConfig, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_charts(monkeypatch)
    longer = Path(shutil.copytree(run_dir, tmp_path / "run"))

    def again(*_: Any) -> None:
        raise AssertionError("it was measured already")

    monkeypatch.setattr("impresa.training.before.measure_before", again)
    train(replace(config, trainer=replace(config.trainer, epochs=2)), longer, command=[], resume=True)
    assert results(longer).before == results(run_dir).before


@pytest.mark.parametrize(
    "kind", ["pair", "adapters", "new heads", "another text tower", "one run", "two runs", "scratch"]
)
def test_only_what_can_do_something_untrained_is_measured(config: ExperimentConfig, tmp_path: Path, kind: str) -> None:
    vision, text = config.vision_encoder, config.text_encoder
    lora = replace(vision, lora=TowerLoraConfig(r=2))
    bert = EncoderConfig(backbone=str(tiny_hub.bert(tmp_path / "bert")), embed_dim=20)
    image, words = (f"{part}_encoder.checkpoint={finished_run()}" for part in ("vision", "text"))
    config = {
        "pair": lambda: config,
        "adapters": lambda: replace(config, vision_encoder=lora),
        "new heads": lambda: replace(config, text_encoder=replace(text, projection="mlp")),
        "another text tower": lambda: replace(config, text_encoder=bert),
        "one run": lambda: tiny_experiment(image, words),
        "two runs": lambda: tiny_experiment(image, f"text_encoder.checkpoint={copy_of_run(tmp_path / 'copy')}"),
        "scratch": tiny_experiment,
    }[kind]()
    task = task_of(prepare(config))
    model = task.build(task.prepare(open_source(config.dataset, "train", reading_of(config))))
    assert task.is_of_use_untrained(model) == (kind in ("pair", "adapters", "one run"))
    if kind == "scratch":
        measure_before(config, build_parts(config, None), tmp_path, torch.device("cpu"))
    assert not (tmp_path / "before.json").exists()
