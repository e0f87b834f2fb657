from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Literal

import pytest
import torch

from impresa.config.types import CheckpointConfig, LoggingConfig
from impresa.errors import CheckpointError, ConfigError
from impresa.training.checkpoints import FORMAT, Checkpoints, check_names, discard_last, format_name, read_checkpoint
from impresa.training.distributed import Group
from impresa.training.plan import Plan

ALONE = Group(torch.device("cpu"))


class Run:
    """Makes steps as a training run would, of a state that is its step alone."""

    def __init__(self, folder: Path, plan: Plan, group: Group = ALONE, **settings: Any) -> None:
        self.plan = plan
        self.folder = folder / "checkpoints"
        self.step = 0
        self.checkpoints = Checkpoints(CheckpointConfig(**settings), folder, plan, group, self.content)

    def content(self) -> dict[str, Any]:
        """The parts that a training stores, empty but for the step."""
        position = dict.fromkeys(("epoch", "next_batch", "num_samples", "global_batch_size", "world_size", "seed"), 0)
        parts: dict[str, Any] = {"model": {}, "optimizer": {}, "scaler": None, "average": None, "losses": []}
        parts |= {"total_steps": 0, "warmup_steps": 0, "monitored": []}
        return {"step": self.step, "data": position, **parts}

    def to(self, step: int, val_loss: float = 0.0) -> None:
        """Make the step; `val_loss` is what a validation finds, if one is due."""
        self.step = step
        self.checkpoints.after_step(step, {"val_loss": val_loss} if self.plan.evaluates_after(step) else None)

    @property
    def files(self) -> dict[str, int]:
        """File name -> the step whose state it holds."""
        return {path.name: torch.load(path)["step"] for path in sorted(self.folder.glob("*"))}

    @property
    def kept(self) -> dict[str, int]:
        """The same when the run is over."""
        discard_last(self.checkpoints.config, self.folder.parent)
        return self.files


def plan(total: int, every: int = 1, save: int | None = None) -> Plan:
    return Plan(100, total, LoggingConfig(eval_interval=every, save_interval=save or every))


def test_the_best_are_kept_and_the_worst_of_them_goes(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(5), save_top_k=2, save_last=False)
    for step, loss in enumerate((3.0, 1.0, 2.0, 5.0, 1.5), start=1):
        run.to(step, loss)
    assert run.kept == {"000-0000002.ckpt": 2, "000-0000005.ckpt": 5}
    assert run.checkpoints.best == run.folder / "000-0000002.ckpt"


def test_max_keeps_the_largest(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(3), save_top_k=1, save_last=False, mode="max")
    for step, value in enumerate((1.0, 3.0, 2.0), start=1):
        run.to(step, value)
    assert run.kept == {"000-0000002.ckpt": 2}


def test_a_metric_that_is_nan_is_the_worst_in_either_mode(tmp_path: Path) -> None:
    for mode in ("min", "max"):
        run = Run(tmp_path, plan(2), save_top_k=1, save_last=False, mode=mode)
        run.to(1, float("nan"))
        run.to(2, 7.0)
        assert run.kept == {"000-0000002.ckpt": 2}
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


@pytest.mark.parametrize("save_top_k", [0, 1])
def test_a_crash_finds_a_checkpoint_at_each_interval_whatever_is_kept_in_the_end(
    tmp_path: Path, save_top_k: int
) -> None:
    run = Run(tmp_path, plan(9, every=7, save=2), save_top_k=save_top_k, save_last=False)
    for step in range(1, 10):
        run.to(step, 1.0)
        assert run.files.get("last.ckpt") == {1: None, 9: 9}.get(step, step // 2 * 2)
    assert run.kept == ({} if save_top_k == 0 else {"000-0000007.ckpt": 7})


def test_the_last_is_kept_where_that_is_asked(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(1), save_top_k=0)
    run.to(1)
    assert run.kept == {"last.ckpt": 1}


def test_a_run_that_ends_early_saves_its_last_step(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(9, every=5))
    run.step = 3
    run.checkpoints.after_step(3, None, is_last=True)
    assert run.files == {"last.ckpt": 3}


def test_the_last_stays_what_it_was_when_a_new_best_replaces_the_old(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(6, every=1, save=6), save_top_k=1)
    run.to(5, 1.0)
    run.to(6, 2.0)
    assert run.files == {"000-0000005.ckpt": 5, "last.ckpt": 6}


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(3), filename="{epoch}-{val_loss:.1f}", save_last=False)
    run.to(1, 1.0)
    run.to(2, 1.0)
    assert run.kept == {"0-1.0.ckpt": 1, "0-1.0-v1.ckpt": 2}


def test_the_folder_is_relative_to_the_run(tmp_path: Path) -> None:
    assert Run(tmp_path, plan(1), dirpath="a/b").checkpoints.directory == tmp_path / "a" / "b"


def test_a_resumed_run_remembers_the_best_that_are_still_there(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(3), save_top_k=2, save_last=False)
    run.to(1, 1.0)
    run.to(2, 2.0)
    scores = read_checkpoint(run.folder / "000-0000002.ckpt")["scores"]
    assert scores == {"000-0000001.ckpt": 1.0, "000-0000002.ckpt": 2.0}
    (run.folder / "000-0000001.ckpt").unlink()
    resumed = Run(tmp_path, plan(3), save_top_k=2, save_last=False)
    resumed.checkpoints.resume(scores)
    assert resumed.checkpoints.scores == {"000-0000002.ckpt": 2.0}


def test_between_validations_a_name_tells_the_last_metrics(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(6, every=3, save=2), save_top_k=-1, save_last=False, filename="{step}-{val_loss}")
    run.checkpoints.check_names({"val_loss": 9.0})
    for step in range(1, 5):
        run.to(step, 1.5)
    assert set(run.kept) == {"2-nan.ckpt", "3-1.5.ckpt", "4-1.5.ckpt"}


def test_the_last_is_saved_on_demand(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(9, every=5), save_last=False)
    run.to(2)
    run.checkpoints.save_last()
    assert run.files == {"last.ckpt": 2}


def test_other_processes_write_nothing_and_know_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    monkeypatch.setattr(Group, "barrier", lambda group: waited.append(group.rank))
    run = Run(tmp_path, plan(3), Group(torch.device("cpu"), rank=1, world_size=2), save_top_k=1)
    for step, loss in enumerate((3.0, 1.0, 2.0), start=1):
        run.to(step, loss)
    assert not run.folder.exists()
    assert run.checkpoints.scores == {"000-0000002.ckpt": 1.0}
    assert waited == [1, 1, 1]  # two of the best; the last is a copy, and after the third step a file of its own


def test_an_interrupted_write_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, plan(2))

    def dies(content: object, file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", dies)
        with pytest.raises(OSError, match="disk full"):
            run.to(1, 1.0)
    assert not list(run.folder.iterdir())


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"monitor": "val_accuracy"},
            r"trainer.checkpoint.monitor \(training.checkpoint.monitor\): .*'val_accuracy'; there are val_loss",
        ),
        ({"filename": "{step}-{acc:.2f}"}, "trainer.checkpoint.filename: unknown name 'acc'.*val_loss"),
    ],
)
def test_unknown_metrics_are_refused(tmp_path: Path, settings: dict[str, str], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        Run(tmp_path, plan(1), **settings).checkpoints.check_names({"val_loss": 1.0})


@pytest.mark.parametrize(("monitor", "mode"), [("val_recall", "max"), ("val_exact_match", "max"), ("val_loss", "min")])
def test_a_known_metric_has_its_own_direction(monitor: str, mode: Literal["min", "max"]) -> None:
    check_names(CheckpointConfig(monitor=monitor, mode=mode), [monitor])
    other: Literal["min", "max"] = "min" if mode == "max" else "max"
    with pytest.raises(
        ConfigError, match=rf"checkpoint.mode\): {other} would keep the worst {monitor}; set it to {mode}"
    ):
        check_names(CheckpointConfig(monitor=monitor, mode=other), [monitor])


def test_a_monitor_is_needed_also_when_no_best_is_kept() -> None:
    with pytest.raises(ConfigError, match="'nonsense'; there are val_loss, val_recall"):
        check_names(CheckpointConfig(monitor="nonsense", save_top_k=0), ["val_recall", "val_loss"])


@pytest.mark.parametrize(
    "pattern", ["{epoch", "{step:q}", "{}", "../{step}", "a/{step}", "last", ".{step}", "{epoch.real}"]
)
def test_bad_file_name_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.checkpoint\.filename"):
        format_name(pattern, 1, 2, {"val_loss": 0.5})


def test_a_pattern_can_use_metrics() -> None:
    assert format_name("{epoch:03d}-{step:07d}-{val_loss:.3f}", 1, 20, {"val_loss": 0.5}) == "001-0000020-0.500"


def test_a_checkpoint_that_would_run_code_is_not_opened(tmp_path: Path) -> None:
    torch.save({"format": FORMAT, "extra": SimpleNamespace()}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_a_broken_checkpoint_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="no usable checkpoint") as caught:
        read_checkpoint(tmp_path / "a.ckpt")
    assert len(str(caught.value).splitlines()) == 1


def test_a_checkpoint_of_an_earlier_version_is_told_in_one_line(tmp_path: Path) -> None:
    torch.save({"global_step": 1, "pytorch-lightning_version": "2.6"}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a.ckpt: was written by another version of impresa; finish the run"):
        read_checkpoint(tmp_path / "a.ckpt")
