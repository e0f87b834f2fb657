from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from impresa.config.experiment import CheckpointConfig, LoggingConfig
from impresa.errors import CheckpointError, ConfigError
from impresa.training.checkpoints import Checkpoints, format_name, read_checkpoint
from impresa.training.interrupt import GracefulStop, TrainingInterrupted
from impresa.training.module import TrainingModule
from impresa.training.plan import Plan


class Run:
    """Drives the callback as a training would, with a module that only counts and a trainer that only saves."""

    def __init__(self, folder: Path, plan: Plan, **settings: Any) -> None:
        self.plan = plan
        self.folder = folder / "checkpoints"
        self.folder.mkdir(exist_ok=True)
        self.stop = GracefulStop()
        self.checkpoints = Checkpoints(CheckpointConfig(**settings), folder, self.stop)
        self.module = TrainingModule.__new__(TrainingModule)
        torch.nn.Module.__init__(self.module)
        self.module.plan, self.module.step = plan, 0
        self.metrics: dict[str, Tensor] = {}
        self.trainer: Any = SimpleNamespace(
            is_global_zero=True,
            world_size=1,
            sanity_checking=False,
            callback_metrics=self.metrics,
            save_checkpoint=lambda path: torch.save({"global_step": self.module.step}, path),
        )

    def to(self, step: int, val_loss: float = 0.0) -> None:
        """Make the step; `val_loss` is what a validation finds, if one is due."""
        self.module.step = step
        self.checkpoints.on_train_batch_end(self.trainer, self.module)
        if self.plan.evaluates_after(step):
            self.metrics["val_loss"] = torch.tensor(val_loss)
            self.checkpoints.on_validation_end(self.trainer, self.module)

    @property
    def files(self) -> dict[str, int]:
        """File name -> the step whose state it holds."""
        return {path.name: torch.load(path)["global_step"] for path in sorted(self.folder.iterdir())}


def plan(total: int, every: int = 1, save: int | None = None) -> Plan:
    return Plan(100, total, LoggingConfig(eval_interval=every, save_interval=save or every))


def test_the_best_are_kept_and_the_worst_of_them_goes(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(5), save_top_k=2, save_last=False)
    for step, loss in enumerate((3.0, 1.0, 2.0, 5.0, 1.5), start=1):
        run.to(step, loss)
    assert run.files == {"000-0000002.ckpt": 2, "000-0000005.ckpt": 5}
    assert run.checkpoints.best == run.folder / "000-0000002.ckpt"


def test_max_keeps_the_largest(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(3), save_top_k=1, save_last=False, mode="max")
    for step, value in enumerate((1.0, 3.0, 2.0), start=1):
        run.to(step, value)
    assert run.files == {"000-0000002.ckpt": 2}


def test_a_metric_that_is_nan_is_the_worst_in_either_mode(tmp_path: Path) -> None:
    for mode in ("min", "max"):
        run = Run(tmp_path, plan(2), save_top_k=1, save_last=False, mode=mode)
        run.to(1, float("nan"))
        run.to(2, 7.0)
        assert run.files == {"000-0000002.ckpt": 2}
        next(run.folder.iterdir()).unlink()


def test_zero_keeps_none_but_the_last(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(2), save_top_k=0)
    run.to(1, 1.0)
    run.to(2, 0.5)
    assert run.files == {"last.ckpt": 2}
    assert run.checkpoints.best is None


def test_minus_one_keeps_all_those_between_validations_too(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(6, every=3, save=2), save_top_k=-1)
    for step in range(1, 7):
        run.to(step, 10.0 - step)
    assert run.files == {**{f"000-000000{s}.ckpt": s for s in (2, 3, 4, 6)}, "last.ckpt": 6}
    assert run.checkpoints.best == run.folder / "000-0000006.ckpt"


def test_the_best_are_chosen_on_a_fresh_metric_only(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(6, every=3, save=2), save_top_k=9)
    for step in range(1, 7):
        run.to(step, 1.0)
        assert run.files.get("last.ckpt") == {1: None, 2: 2, 3: 2, 4: 4, 5: 4, 6: 6}[step]
    assert set(run.files) == {"000-0000003.ckpt", "000-0000006.ckpt", "last.ckpt"}


def test_without_save_last_there_is_no_last(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(1), save_last=False)
    run.to(1, 1.0)
    assert set(run.files) == {"000-0000001.ckpt"}


def test_the_last_stays_what_it_was_when_a_new_best_replaces_the_old(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(6, every=1, save=6), save_top_k=1)
    run.to(5, 1.0)
    run.to(6, 2.0)
    assert run.files == {"000-0000005.ckpt": 5, "last.ckpt": 6}


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(3), filename="{epoch}-{val_loss:.1f}", save_last=False)
    run.to(1, 1.0)
    run.to(2, 1.0)
    assert run.files == {"0-1.0.ckpt": 1, "0-1.0-v1.ckpt": 2}


def test_the_folder_is_relative_to_the_run(tmp_path: Path) -> None:
    assert Checkpoints(CheckpointConfig(dirpath="a/b"), tmp_path, GracefulStop()).directory == tmp_path / "a" / "b"


def test_a_resumed_run_remembers_the_best_that_are_still_there(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(3), save_top_k=2, save_last=False)
    run.to(1, 1.0)
    run.to(2, 2.0)
    state = run.checkpoints.state_dict()
    (run.folder / "000-0000001.ckpt").unlink()
    resumed = Run(tmp_path, plan(3), save_top_k=2, save_last=False)
    resumed.checkpoints.load_state_dict(state)
    assert resumed.checkpoints.scores == {"000-0000002.ckpt": 2.0}


def test_ctrl_c_saves_the_last_and_ends_the_training(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(9, every=5), save_last=False)
    run.to(1)
    run.stop.requested = True
    with pytest.raises(TrainingInterrupted):
        run.to(2)
    assert run.files == {"last.ckpt": 2}


def test_ctrl_c_waits_for_a_validation_that_is_due(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(9, every=5))
    run.stop.requested = True
    run.module.step = 5
    run.checkpoints.on_train_batch_end(run.trainer, run.module)
    assert run.files == {}
    run.metrics["val_loss"] = torch.tensor(1.0)
    with pytest.raises(TrainingInterrupted):
        run.checkpoints.on_validation_end(run.trainer, run.module)
    assert run.files == {"000-0000005.ckpt": 5, "last.ckpt": 5}


def test_an_interrupted_write_leaves_no_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(2))

    def dies(path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    run.trainer.save_checkpoint = dies
    with pytest.raises(OSError, match="disk full"):
        run.to(1, 1.0)
    assert not list(run.folder.glob("*.ckpt"))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"monitor": "val_accuracy"}, "trainer.checkpoint.monitor: .*'val_accuracy'; there are val_loss"),
        ({"filename": "{step}-{acc:.2f}"}, "trainer.checkpoint.filename: unknown name 'acc'.*val_loss"),
    ],
)
def test_unknown_metrics_are_refused_at_the_first_validation(
    tmp_path: Path, settings: dict[str, str], line: str
) -> None:
    run = Run(tmp_path, plan(1), **settings)
    run.trainer.sanity_checking = True
    run.metrics["val_loss"] = torch.tensor(1.0)
    with pytest.raises(ConfigError, match=line):
        run.checkpoints.on_validation_end(run.trainer, run.module)


def test_a_monitor_is_not_needed_when_no_best_is_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(1), monitor="nonsense", save_top_k=0)
    run.trainer.sanity_checking = True
    run.checkpoints.on_validation_end(run.trainer, run.module)


@pytest.mark.parametrize(
    "pattern", ["{epoch", "{step:q}", "{}", "../{step}", "a/{step}", "last", ".{step}", "{epoch.real}"]
)
def test_bad_file_name_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.checkpoint\.filename"):
        format_name(pattern, 1, 2, {"val_loss": 0.5})


def test_a_pattern_can_use_metrics() -> None:
    assert format_name("{epoch:03d}-{step:07d}-{val_loss:.3f}", 1, 20, {"val_loss": 0.5}) == "001-0000020-0.500"


def test_a_checkpoint_that_would_run_code_is_not_opened(tmp_path: Path) -> None:
    torch.save({"global_step": 1, "extra": SimpleNamespace()}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_a_broken_checkpoint_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="no usable checkpoint") as caught:
        read_checkpoint(tmp_path / "a.ckpt")
    assert len(str(caught.value).splitlines()) == 1
