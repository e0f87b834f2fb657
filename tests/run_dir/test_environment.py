from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from impresa import __version__
from impresa.run_dir import environment
from impresa.run_dir.environment import describe_environment


def test_versions_machine_command_and_seed() -> None:
    found = describe_environment(["impresa", "train"], seed=3)
    assert (found["command"], found["seed"], found["impresa"]) == (["impresa", "train"], 3, __version__)
    assert found["packages"]["torch"] == torch.__version__
    assert found["started"].endswith("+00:00")


def test_the_commit_and_whether_files_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert describe_environment([], 0)["git"] is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "a").write_text("one")
    for arguments in (["init", "-q"], ["add", "a"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *arguments], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert describe_environment([], 0)["git"] == {"commit": commit, "has_changes": False}
    (tmp_path / "a").write_text("two")
    assert describe_environment([], 0)["git"] == {"commit": commit, "has_changes": True}


def test_a_machine_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(environment.subprocess, "run", missing)
    assert describe_environment([], 0)["git"] is None


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("no-such-package",))
    assert describe_environment([], 0)["packages"] == {"no-such-package": None}
