"""The time of a study's runs, by those that have finished."""

from __future__ import annotations

from pathlib import Path

from impresa.ablation.timing import RunTime, from_finished
from impresa.run_dir.environment import Environment, Resumption, write_environment


def environment(finished: str) -> Environment:
    return Environment(started="2026-01-01T10:00:00+00:00", finished=finished)


def test_runs_take_as_long_as_whole_runs_have_taken(tmp_path: Path) -> None:
    pause = Resumption(time="2026-01-02T10:00:00+00:00", step=3, command=[])
    found = {
        "short": environment("2026-01-01T10:00:20+00:00"),
        "long": environment("2026-01-01T10:00:40+00:00"),
        "resumed": Environment(**environment("2026-01-02T10:00:20+00:00"), resumed=[pause]),
        "damaged": environment("yesterday"),
        "unfinished": Environment(started="2026-01-01T10:00:00+00:00"),
    }
    for name, content in found.items():
        (tmp_path / name).mkdir()
        write_environment(tmp_path / name, content)
    assert from_finished([tmp_path / name for name in found]) == RunTime(30.0, "by 2 finished runs")
    assert from_finished([tmp_path / "resumed", tmp_path / "nowhere"]) is None
