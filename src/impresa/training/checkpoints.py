"""The checkpoints that a run keeps, and reading one again."""

from __future__ import annotations

import math
import os
import shutil
import string
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

import torch

from impresa.config.memory_vlm import both_names
from impresa.config.types import CheckpointConfig
from impresa.errors import CheckpointError, ConfigError
from impresa.files import inside, move_aside, remove, replacing, replacing_folder
from impresa.run_dir.layout import CONFIG
from impresa.run_dir.layout import LAST_CHECKPOINT as LAST
from impresa.run_dir.lock import check_lock
from impresa.training.distributed import Group
from impresa.training.plan import Plan
from impresa.training.processes import TrainingInterrupted
from impresa.training.sharded_checkpoints import (
    FILES,
    FOLDER,
    STATE,
    PartWriter,
    outlined,
    whole_content,
    write_parts,
)
from impresa.training.stored import check_content

SUFFIX = ".ckpt"
FORMAT = 2
"""Version of the content of a checkpoint."""
BETTER = {"max": ("recall", "exact_match", "vqa_accuracy"), "min": ("loss", "perplexity")}
"""By the direction in which they get better, parts of the names of metrics."""


class Checkpoints:
    """Keeps the best checkpoints and the last one.

    The best are chosen right after a validation, by its metric. The last is written at the plan's intervals, and when
    the run is interrupted; `discard_last` removes it where none is to be kept in the end. The first process writes each
    file under another name and renames it; the others wait. Processes that share the model out write a folder together,
    which is renamed likewise, and train on meanwhile. Such a folder is there when the next one is begun, when `wait`
    returns, and when a block that these checkpoints are the context of has ended.

    Args:
        config: which checkpoints to keep.
        run_dir: the run; `config.dirpath` is relative to it.
        plan: length and intervals of the run.
        group: the processes.
        content: gives the content of a checkpoint, beside format, epoch and scores.
    """

    def __init__(
        self, config: CheckpointConfig, run_dir: Path, plan: Plan, group: Group, content: Callable[[], dict[str, Any]]
    ) -> None:
        self.config = config
        self.directory = run_dir / config.dirpath
        self._run_dir = run_dir
        self.scores: dict[str, float] = {}
        """Checkpoints kept for their metric: file name -> value."""
        self._plan = plan
        self._group = group
        self._content = content
        self._writer = PartWriter(group) if group.shares_model else None
        self._step = 0
        self._metrics: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        elif not issubclass(kind, TrainingInterrupted):  # which comes when all is saved, or is in a hurry
            with suppress(Exception):  # what has ended the run is to be told
                self.wait()

    @property
    def best(self) -> Path | None:
        """The checkpoint with the best metric; None when none is kept."""
        self.wait()
        ranked = self._ranked()
        return self.directory / ranked[0] if ranked else None

    def wait(self) -> None:
        """Wait until what was saved is there.

        Raises:
            OSError: it could not be written; in all processes.
        """
        if self._writer is not None:
            self._writer.wait()

    def check_names(self, metrics: Mapping[str, float]) -> None:
        """See `check_names`; names of checkpoints before the first validation can have these metrics too."""
        check_names(self.config, metrics)
        self._metrics = dict.fromkeys(metrics, math.nan)  # until they are measured

    def after_step(self, step: int, metrics: Mapping[str, float] | None, *, is_last: bool = False) -> None:
        """Save what is due after step number `step`, with the metrics of its validation if there was one.

        `is_last`: the run ends here, before its plan does.
        """
        self._step, named = step, None
        if metrics is not None:
            self._metrics = dict(metrics)
            named = self._value_if_good(metrics)
        elif self.config.save_top_k == -1 and self._plan.saves_after(step):
            named = math.nan
        saves_last = is_last or self._plan.saves_after(step)
        if named is not None:
            self._save_named(named, is_last_too=saves_last)
        elif saves_last:
            self.save_last()

    def save_last(self) -> None:
        """Write the last checkpoint."""
        self._save(self.directory / LAST)

    def resume(self, scores: Mapping[str, float]) -> None:
        """Take over those scores of an earlier part of the run whose files still exist."""
        self.scores = {name: value for name, value in scores.items() if (self.directory / name).exists()}

    def _value_if_good(self, metrics: Mapping[str, float]) -> float | None:
        """The value of the current state if it is among the best."""
        limit = self.config.save_top_k
        if limit == 0:
            return None
        value = metrics[self.config.monitor]
        if math.isnan(value):
            value = math.inf if self.config.mode == "min" else -math.inf
        ranked = self._ranked()
        if 0 < limit <= len(ranked):
            worst = self.scores[ranked[limit - 1]]
            if value >= worst if self.config.mode == "min" else value <= worst:
                return None
        return value

    def _save_named(self, value: float, *, is_last_too: bool) -> None:
        """Save the current state under a name of its own, and then remove what is no longer among the best."""
        stem = format_name(self.config.filename, self._plan.epoch_of(self._step), self._step, self._metrics)
        name, version = stem + SUFFIX, 1
        while name in self.scores:
            name, version = f"{stem}-v{version}{SUFFIX}", version + 1
        self.scores[name] = value  # before saving, so that the checkpoint has its own score
        limit = self.config.save_top_k
        surplus = self._ranked()[limit:] if limit > 0 else []
        path = self.directory / name

        def then() -> None:
            for other in surplus:
                remove(self.directory / other)
            if is_last_too:
                _copy(path, self.directory / LAST)

        self._save(path, then)
        for other in surplus:
            del self.scores[other]

    def _save(self, path: Path, then: Callable[[], None] = lambda: None) -> None:
        """Write the current state; what comes `then`, the first process does when it is there."""
        group = self._group
        if self._writer is not None:
            self._writer.wait()
            group.by_first(self._prepare)
            self._writer.begin(path, self._whole_content(), then)
            return
        if group.is_main:
            self._prepare()
            write_single(path, self._whole_content())
            then()
        group.barrier()

    def _prepare(self) -> None:
        check_lock(self._run_dir)
        self.directory.mkdir(parents=True, exist_ok=True)

    def _whole_content(self) -> dict[str, Any]:
        epoch = self._plan.epoch_of(self._step)
        return {"format": FORMAT, "epoch": epoch, "scores": dict(self.scores), **self._content()}

    def _ranked(self) -> list[str]:
        """File names of the checkpoints that have a metric, the best first."""
        scored = [name for name, value in self.scores.items() if not math.isnan(value)]
        return sorted(scored, key=lambda name: self.scores[name], reverse=self.config.mode == "max")


def check_names(config: CheckpointConfig, metrics: Iterable[str]) -> None:
    """Refuse a monitored metric that is not among those of a validation or gets better in the other direction, and a
    broken pattern of file names.

    Raises:
        ConfigError: with the names that there are.
    """
    names = sorted(metrics)
    if config.monitor not in names:
        fault = f"no metric is called {config.monitor!r}"
        raise ConfigError(f"{both_names('trainer.checkpoint.monitor')}: {fault}; there are {', '.join(names)}")
    for mode, parts in BETTER.items():
        if mode != config.mode and any(part in config.monitor for part in parts):
            fault = f"{config.mode} would keep the worst {config.monitor}"
            raise ConfigError(f"{both_names('trainer.checkpoint.mode')}: {fault}; set it to {mode}")
    format_name(config.filename, 0, 0, dict.fromkeys(names, 0.0))


def discard_last(config: CheckpointConfig, run_dir: Path) -> None:
    """Remove the last checkpoint of a run that is over, unless the config keeps it."""
    if not config.save_last:
        remove(run_dir / config.dirpath / LAST)


def format_name(pattern: str, epoch: int, step: int, metrics: Mapping[str, float]) -> str:
    """The file name, without suffix, of a pattern like `{epoch:03d}-{step:07d}-{val_loss:.3f}`.

    Raises:
        ConfigError: the pattern is broken, has an unknown name, or leads to another folder.
    """
    key = "trainer.checkpoint.filename"
    values: dict[str, float] = {**metrics, "epoch": epoch, "step": step}
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None]
        unknown = [name for name in names if name not in values]
        if unknown:
            known = ", ".join(sorted(values))
            raise ConfigError(f"{key}: unknown name {unknown[0]!r} in {pattern!r}; there are {known}")
        name = pattern.format(**values)
        inside(Path(), name, directly=True)
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        example = "{epoch:03d}-{step:07d}"
        raise ConfigError(f"{key}: {pattern!r} is no pattern ({error}); write one like {example}") from error
    if name + SUFFIX == LAST:
        raise ConfigError(f"{key}: {pattern!r} is no file name of its own; choose another")
    return name


def write_single(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint as one file."""
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            torch.save(dict(content), file)  # to an open file, whose errors say what is wrong
        before = move_aside(path, temporary)
    if before is not None:
        remove(before)


def convert(path: Path, out: Path, *, to: Literal["single", "sharded"]) -> Path:
    """Write a checkpoint in the other form: as a single file, or in parts, of which there is one then.

    Args:
        path: the checkpoint, a file or a folder.
        out: where to; nothing may be there.
        to: the form.

    Returns:
        `out`.

    Raises:
        CheckpointError: `path` is no checkpoint or has this form already, or something is at `out`.
        OSError: `out` cannot be written.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: does not exist; name a checkpoint, such as RUN/checkpoints/{LAST}")
    if (path / CONFIG).exists():
        raise CheckpointError(f"{path}: is a run; name one of its checkpoints, such as {path}/checkpoints/{LAST}")
    if path.is_dir() == (to == "sharded"):
        raise CheckpointError(f"{path}: is {to} already; there is nothing to convert")
    if out.exists() or out.is_symlink():
        raise CheckpointError(f"{out}: is there already; name a new --out")
    content = whole_content(read_checkpoint(path))
    content.pop(FOLDER, None)
    content.pop(FILES, None)
    out.parent.mkdir(parents=True, exist_ok=True)
    (write_single if to == "single" else write_parts)(out, content)
    return out


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, a file or a folder: tensors, which stay there until they are used, and plain values;
    in place of tensors in a folder's parts their outlines, which `whole_content` reads. No code in it is executed.

    Raises:
        CheckpointError: it is broken, holds anything else, or was written by another version.
    """
    content = _load(path)
    if content.get("format") != FORMAT:
        fault = "was written by another version of impresa; finish the run with that version, or start anew"
        raise CheckpointError(f"{path}: {fault}")
    try:
        check_content(content)
        for name in content["scores"]:
            inside(path.parent, name.removesuffix(SUFFIX), directly=True)
            if not name.endswith(SUFFIX):
                raise ValueError(f"{name!r} is no checkpoint")
    except ValueError as error:
        raise _unusable(path, str(error)) from error
    return content


def _load(path: Path) -> dict[str, Any]:
    """The one place that opens a checkpoint. What torch says of a file that it cannot read is not passed on: it advises
    to let the file run code."""
    file = path / STATE if path.is_dir() else path
    if not file.is_file():
        raise _unusable(path, "it is no file")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if path.is_dir():
            content = outlined(path, content)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise _unusable(path, str(error)) from error
    except Exception as error:  # torch has several for a broken file
        raise _unusable(path, "it is damaged, or something else") from error
    if not isinstance(content, dict):
        raise _unusable(path, "it holds something else")
    return content


def _unusable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: is no usable checkpoint ({reason}); remove it to resume from another")


def _copy(source: Path, target: Path) -> None:
    """Give `source` a second name, by hard links where the file system has them."""
    if source.is_dir():
        with replacing_folder(target) as temporary:
            shutil.copytree(source, temporary, copy_function=_link, dirs_exist_ok=True)
        return
    with replacing(target) as temporary:
        temporary.unlink(missing_ok=True)
        _link(source, temporary)


def _link(source: Path | str, target: Path | str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
