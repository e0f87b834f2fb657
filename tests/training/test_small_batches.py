"""Contrastive training needs something to tell a sample from: too small batches are refused before anything is done."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from impresa.cli.main import main
from impresa.errors import ConfigError, DataError
from impresa.training.parts import build_parts
from impresa.training.run import train
from pictures import numbered, write_jsonl
from tiny_run import TINY, tiny_experiment
from tiny_vlm import tiny_vlm

GATHERED = "losses.gather_distributed=true"
ALONE = r"^dataset\.batch_size \(training\.batch_size\): 1 leaves {} nothing to tell a sample from, .*; at least 2"


@pytest.mark.parametrize("loss", ["clip", "siglip"])
@pytest.mark.parametrize("more", [(), ("trainer.accumulate_grad_batches=8",), (GATHERED,)])
def test_a_batch_of_one_is_refused_and_nothing_is_written(loss: str, more: tuple[str, ...], tmp_path: Path) -> None:
    config = tiny_experiment("dataset.batch_size=1", f"losses.type={loss}", *more)
    with pytest.raises(ConfigError, match=ALONE.format(loss)):
        train(config, tmp_path / "run", command=[])
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_a_gathered_batch_counts_as_what_it_is_over_all_processes() -> None:
    config = tiny_experiment("dataset.batch_size=1", "dataset.eval_batch_size=4", GATHERED)
    assert build_parts(config, None, world_size=2).data.train_loader(1, 2)
    with pytest.raises(ConfigError, match=r"dataset\.eval_batch_size.*: 1 leaves a validation nothing"):
        build_parts(tiny_experiment("dataset.batch_size=1", GATHERED), None, world_size=2)
    own = tiny_experiment("dataset.batch_size=1")
    with pytest.raises(ConfigError, match=r"at least 2 .*, or losses\.gather_distributed=true"):
        build_parts(own, None, world_size=2)


@pytest.mark.parametrize(
    ("num_train", "world_size", "more", "fault"),
    [
        (1, 1, (), "there is one training sample"),
        (3, 2, (), "3 samples for 2 processes, of which each needs 2"),
        (3, 4, (GATHERED,), "3 samples for 4 processes; use fewer"),
    ],
)
def test_too_few_samples_are_refused(num_train: int, world_size: int, more: tuple[str, ...], fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        build_parts(tiny_experiment(f"dataset.shapes.num_train={num_train}", *more), None, world_size=world_size)


def test_one_validation_sample_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    build_parts(tiny_experiment("dataset.shapes.num_val=1"), None)
    assert "there is one validation sample and nothing to tell it from: val_loss is 0" in caplog.text


def test_a_vlm_learns_from_one() -> None:
    build_parts(tiny_vlm("dataset.batch_size=1", "dataset.shapes.num_train=1"), None)


def test_the_command_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one image with many captions nothing can be learned either, but only a list of captions shows that."""
    row = {"image": "0.png", "caption": ["one", "two", "three"]}
    data, val = (write_jsonl(tmp_path / name, rows) for name, rows in (("one", [row]), ("val", numbered(4))))
    words = [f"dataset.train_path={data}", f"dataset.val_path={val}", "--output-dir", str(tmp_path / "run")]
    assert main(["train", "shapes", *TINY, *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "one training sample" in line] == lines[-1:]


def test_bad_samples_do_not_leave_a_batch_of_one(tmp_path: Path) -> None:
    rows = [{**row, "caption": "" if number % 2 else row["caption"]} for number, row in enumerate(numbered(8))]
    overrides = (f"dataset.train_path={write_jsonl(tmp_path / 'data', rows)}", "dataset.max_bad_fraction=1")
    parts = build_parts(tiny_experiment(*overrides, "dataset.batch_size=2", "dataset.val_fraction=0.2"), None)
    assert {len(batch) for batch in parts.data.train_loader()} == {2}
