"""A tenth of `make fuzz` and less: damaged files of data and of runs end in a line, in little memory and time."""

from __future__ import annotations

import os
import random
from functools import partial
from pathlib import Path

import pytest

from fuzzing.mutations import edit_bytes
from fuzzing.run import Find, fuzz
from fuzzing.targets import Target, data_targets, run_targets
from impresa.data.check import inspect_source
from impresa.data.sources import Source
from impresa.errors import DataError
from tiny_run import finished_run
from tiny_vlm import finished_vlm

SEED, MUTATIONS = 1, 100
OF_RUNS = 8
"""Mutations of files of runs, whose loading takes longer."""


def finds(targets: list[Target], mutations: int = MUTATIONS) -> list[str]:
    numbers = {target.name: range(max(1, round(mutations * target.share))) for target in targets}
    return [str(find) for target in targets for find in fuzz(target, SEED, numbers[target.name])]


def test_undamaged_files_of_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is refused whatever is in it would show nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # is set, and given back
    read = list[int]()

    def count(source: Source) -> None:
        read.append(len(source) - len(inspect_source(source).bad))

    monkeypatch.setattr("fuzzing.targets.read_all", count)
    targets = list(data_targets(tmp_path))
    for target in targets:
        target.use(target.content)
    assert min(read) > 0
    assert len(read) == len(targets) > 25


def test_files_of_data(tmp_path: Path) -> None:
    assert finds(list(data_targets(tmp_path))) == [], f"seed {SEED}"


@pytest.mark.parametrize("kind", ["alignment", "vqa"])
def test_files_of_runs(kind: str, tmp_path: Path) -> None:
    run_dir = finished_run() if kind == "alignment" else finished_vlm()
    assert finds(list(run_targets(kind, run_dir, tmp_path)), OF_RUNS) == [], f"seed {SEED}"


def raises(error: type[BaseException], _: bytes) -> None:
    raise error("on purpose")


def says_nothing(_: bytes) -> None:
    raise DataError("")


def takes_memory(_: bytes) -> None:
    bytearray(3 << 30)


def ends(_: bytes) -> None:
    os._exit(3)


@pytest.mark.parametrize(
    ("use", "kind"),
    [(partial(raises, KeyError), "raw"), (says_nothing, "lines"), (takes_memory, "memory"), (ends, "crash")],
)
def test_what_must_not_happen_is_found(use: object, kind: str) -> None:
    target = Target("target", b"content", use, edit_bytes)  # type: ignore[arg-type]
    found: list[Find] = fuzz(target, 0, range(3))
    assert [(find.number, find.kind) for find in found] == [(0, kind), (1, kind), (2, kind)]


def test_a_hang_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzzing.run.SECONDS", -4)

    def hangs(_: bytes) -> None:
        while True:
            pass

    (find,) = fuzz(Target("target", b"content", hangs, edit_bytes), 0, range(1))
    assert find.kind == "hang"


def test_mutations_follow_from_seed_target_and_number() -> None:
    damaged = [edit_bytes(b"some content of a file", random.Random("0/x/1")) for _ in range(2)]
    assert damaged[0] == damaged[1] != b"some content of a file"
