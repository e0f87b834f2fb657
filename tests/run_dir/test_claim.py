from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from impresa.config import to_yaml
from impresa.errors import CheckpointError, ConfigError
from impresa.files import clear_half_written
from impresa.run_dir.claim import claim, clear, is_over, newest_checkpoint
from impresa.run_dir.environment import is_finished, read_environment, write_environment
from tiny_run import tiny_experiment

CONFIG = tiny_experiment()


def run_dir(folder: Path, *names: str) -> Path:
    """A run with the given checkpoints, the first the oldest."""
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(CONFIG))
    for age, name in enumerate(names):
        (checkpoints / name).touch()
        os.utime(checkpoints / name, (age, age))
    return folder


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_is_free_that_does_not_exist_or_is_empty(resume: bool, tmp_path: Path) -> None:
    assert claim(tmp_path / "new", CONFIG, resume=resume) is None
    assert claim(tmp_path, CONFIG, resume=resume) is None
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_never_made_a_checkpoint_is_free_too(resume: bool, tmp_path: Path) -> None:
    assert claim(run_dir(tmp_path / "run"), CONFIG, resume=resume) is None


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_other_things_is_refused(resume: bool, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match="is not empty and no run"):
        claim(tmp_path, CONFIG, resume=resume)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is not empty and no run"):
        claim(tmp_path / "file", CONFIG, resume=False)


def test_a_run_is_continued_only_when_asked(tmp_path: Path) -> None:
    run = run_dir(tmp_path / "run", "last.ckpt")
    assert claim(run, CONFIG, resume=True) == run / "checkpoints" / "last.ckpt"
    with pytest.raises(CheckpointError, match="add --resume"):
        claim(run, CONFIG, resume=False)


def test_a_finished_run_without_checkpoints_is_never_overwritten(tmp_path: Path) -> None:
    run = run_dir(tmp_path / "run")
    (run / "manifest.json").touch()
    with pytest.raises(CheckpointError, match="add --resume"):
        claim(run, CONFIG, resume=False)
    with pytest.raises(CheckpointError, match="no checkpoint to go on from"):
        claim(run, CONFIG, resume=True)
    write_environment(run, {"finished": "now"})
    assert claim(run, CONFIG, resume=True) is None
    assert is_finished(run)


def test_the_last_checkpoint_goes_before_a_newer_one(tmp_path: Path) -> None:
    run = run_dir(tmp_path / "run", "last.ckpt", "a.ckpt")
    assert newest_checkpoint(run / "checkpoints") == run / "checkpoints" / "last.ckpt"
    (run / "checkpoints" / "last.ckpt").unlink()
    assert newest_checkpoint(run / "checkpoints") == run / "checkpoints" / "a.ckpt"


def test_a_resumed_run_keeps_its_config_but_may_move(tmp_path: Path) -> None:
    run = run_dir(tmp_path / "run", "last.ckpt")
    moved = replace(CONFIG, dataset=replace(CONFIG.dataset, num_workers=7, pin_memory=False))
    assert claim(run, moved, resume=True) is not None
    changed = replace(
        moved, seed=3, optimization=replace(CONFIG.optimization, lr=0.5), dataset=replace(CONFIG.dataset, batch_size=9)
    )
    with pytest.raises(ConfigError) as caught:
        claim(run, changed, resume=True)
    assert [line.split(":")[0] for line in caught.value.lines] == ["dataset.batch_size", "optimization.lr", "seed"]


def test_what_a_resumed_run_may_have_otherwise(tmp_path: Path) -> None:
    run = run_dir(tmp_path / "run", "last.ckpt")
    now = tiny_experiment(
        *("trainer.epochs=9", "trainer.max_steps=20", "trainer.early_stopping_patience=3", "dataset.num_workers=2"),
        *("trainer.logging.log_interval=7", "trainer.logging.eval_interval=7", "trainer.logging.wandb=true"),
        *("trainer.logging.project=p", "trainer.checkpoint.save_top_k=1", "trainer.checkpoint.save_last=false"),
        *("dataset.max_bad_fraction=0.5", "labels.description=longer"),
    )
    assert claim(run, now, resume=True) == run / "checkpoints" / "last.ckpt"


def test_a_finished_run_is_over_unless_its_length_changes(tmp_path: Path) -> None:
    run = run_dir(tmp_path / "run", "last.ckpt")
    assert not is_over(run, CONFIG)
    write_environment(run, {"finished": "now"})
    assert is_over(run, CONFIG)
    assert is_over(run, tiny_experiment("dataset.num_workers=7"))
    assert not is_over(run, tiny_experiment("trainer.epochs=4"))
    assert not is_over(run, tiny_experiment("trainer.early_stopping_patience=4"))


def test_what_a_failed_start_left_is_cleared(tmp_path: Path) -> None:
    run = run_dir(tmp_path / "run")
    for folder in ("events", "wandb"):
        (run / folder).mkdir()
    for name in ("metrics.csv", "bad_samples.jsonl", "environment.json", "events/old", "wandb_id", "note.txt"):
        (run / name).touch()
    clear(run)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "config.yaml", "note.txt"]


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    run = run_dir(tmp_path / "run")
    before = sorted(run.rglob("*"))
    (run / "checkpoints" / ".last.ckpt.x1.tmp").write_bytes(b"half")
    (run / ".tokenizer.x2.tmp").mkdir()
    (run / ".tokenizer.x2.tmp" / "tokenizer.json").touch()
    clear_half_written(run)
    assert sorted(run.rglob("*")) == before


def test_what_was_being_replaced_is_put_back(tmp_path: Path) -> None:
    run = run_dir(tmp_path / "run")
    checkpoints = run / "checkpoints"
    for name in (".last.ckpt.abcd_123.old", ".other.ckpt.abcd1234.old", "other.ckpt"):
        (checkpoints / name).mkdir()
    (checkpoints / ".notes.old").touch()
    (checkpoints / "last.ckpt").unlink(missing_ok=True)
    clear_half_written(run)
    names = {path.name for path in checkpoints.iterdir()}
    assert {"last.ckpt", "other.ckpt", ".notes.old"} <= names
    assert not [name for name in names if name.endswith(("123.old", "1234.old"))]


def test_a_damaged_environment_is_told(tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"environment\.json: Invalid JSON"):
        read_environment(tmp_path)
