"""Killed by SIGKILL and resumed: to the bit the run that was not, and on another number of processes the same run."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_any_processes import SIZES, experiment, noting_samples
from test_run import same

from impresa.errors import ConfigError
from impresa.run_dir.layout import WEIGHTS
from impresa.training.checkpoints import read_checkpoint
from impresa.training.run import train
from killed import Moment, kill_at, train_in_child, without_end
from run_metrics import rows
from tiny_run import tiny_experiment
from two_processes import _child, in_two_processes

# Everything that a step depends on: dropout, memory that starts from features, an average, drawn dimensions.
EVERYTHING = (
    *("vision_encoder.use_mrl=true", "vision_encoder.mrl_dimensions=[8,4]", "losses.sample_single_mrl_dim=true"),
    *("vision_encoder.memory.memory_init=features", "optimization.ema_decay=0.9", "dataset.augmentation=strong"),
    *("trainer.epochs=8", "trainer.logging.save_interval=2", "trainer.logging.log_interval=1"),
    "vision_encoder.patch_dropout=0.3",
)
KILLS: tuple[tuple[int, Moment], ...] = (
    (4, "between its batches"),  # in the middle of an epoch of three steps
    (9, "while a checkpoint is written"),
    (13, "before a step"),
)


def test_a_run_that_is_killed_again_and_again_equals_one_that_is_not(tmp_path: Path) -> None:
    config = tiny_experiment(*EVERYTHING)
    assert train_in_child(config, tmp_path / "straight") == 0
    for kill in KILLS:
        assert train_in_child(config, tmp_path / "killed", kill) == -signal.SIGKILL
    assert train_in_child(config, tmp_path / "killed") == 0
    same_to_the_bit(tmp_path / "killed", tmp_path / "straight")
    assert not list((tmp_path / "killed").rglob(".*.tmp"))


def same_to_the_bit(run: Path, other: Path) -> None:
    """Curves, final weights, and all of the last checkpoint."""
    assert rows(run) == rows(other)
    assert (run / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()
    ours, theirs = ({**read_checkpoint(path / "checkpoints/last.ckpt"), "cost": None} for path in (run, other))
    assert same(ours, theirs)


MORE = {"gathered": (1, 4), "answers": (1, 4), "own": (1,)}
"""Kinds of run -> numbers of processes that go on with what two have begun."""
STEPS, KILLED_AT, SAVED_AT = 20, 11, 10
"""The kill comes within an epoch, as the checkpoint before it does."""
SAVING = ("trainer.logging.save_interval=5", f"trainer.max_steps={STEPS}")


def begin(rank: int, folder: Path, kind: str) -> None:
    without_end()
    kill_at(KILLED_AT, "before a step")
    with noting_samples(folder / f"seen{rank}"):
        train(experiment(kind, *SIZES[kind][2], *SAVING), folder / "run", command=[])


def go_on(rank: int, folder: Path, count: int) -> None:
    without_end()
    for kind in [kind for kind, counts in MORE.items() if count in counts]:
        with noting_samples(folder / kind / f"seen{count}-{rank}"):
            train(experiment(kind, *SIZES[kind][2], *SAVING), folder / kind / f"on{count}", command=[], resume=True)


def straight(rank: int, folder: Path) -> None:
    without_end()
    for kind in MORE:
        with noting_samples(folder / kind / "seen"):
            train(experiment(kind, *SIZES[kind][1], *SAVING), folder / kind / "one", command=[])


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each kind: a run that was killed on two processes, copies that other numbers have gone on with, and a
    straight run of one process."""
    folder = tmp_path_factory.mktemp("killed")
    for kind, counts in MORE.items():
        (folder / kind).mkdir()
        context = multiprocessing.get_context("fork")
        both = [context.Process(target=_child, args=(begin, r, 2, folder / kind, folder / kind, kind)) for r in (0, 1)]
        for process in both:
            process.start()
        for process in both:
            process.join()
        assert [process.exitcode for process in both] == [-signal.SIGKILL] * 2
        (folder / kind / "store").unlink(missing_ok=True)
        for count in counts:
            shutil.copytree(folder / kind / "run", folder / kind / f"on{count}")
    for count in (1, 4):
        (folder / f"{count}").mkdir()
        in_two_processes(go_on, folder / f"{count}", folder, count, start="fork", count=count)
    (folder / "one").mkdir()
    in_two_processes(straight, folder / "one", folder, start="fork", count=1)
    return folder


def seen(folder: Path, pattern: str) -> list[tuple[int, str]]:
    """(step, sample) of all processes."""
    lines = [line for path in folder.glob(pattern) for line in path.read_text().splitlines()]
    return sorted((int(line.split(" ", 1)[0]), line.split(" ", 1)[1]) for line in lines)


@pytest.mark.parametrize(("kind", "count"), [(kind, count) for kind, counts in MORE.items() for count in counts])
def test_a_run_killed_on_two_goes_on_with_any_number(kind: str, count: int, begun: Path) -> None:
    folder = begun / kind
    before = [pair for pair in seen(folder, "seen[01]") if pair[0] < SAVED_AT]
    assert before + seen(folder, f"seen{count}-*") == seen(folder, "seen")  # none twice, none lost
    weights, other = load_file(folder / "one" / WEIGHTS), load_file(folder / f"on{count}" / WEIGHTS)
    for name, value in weights.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=1e-5, msg=name)


def test_a_number_that_cannot_share_a_step_is_refused(begun: Path) -> None:
    from impresa.training.resuming import with_same_batch

    checkpoint = read_checkpoint(begun / "gathered/run/checkpoints/last.ckpt")
    with pytest.raises(ConfigError, match=r"trainer\.devices: 3 processes cannot share the 8 samples of a step; "):
        with_same_batch(experiment("gathered", *SIZES["gathered"][2]), checkpoint, 3)
    checkpoint = read_checkpoint(begun / "own/run/checkpoints/last.ckpt")
    with pytest.raises(ConfigError, match=r"8 processes cannot share the 4 batches of a step; .* divides 4 \(without"):
        with_same_batch(experiment("own", *SIZES["own"][2]), checkpoint, 8)
