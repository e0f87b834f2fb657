"""Runs on disk that were changed by hand, and the one line that refuses them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import impresa
from impresa.errors import CheckpointError
from impresa.run_dir.manifest import checksum


def forge(run_dir: Path, name: str) -> None:
    """Make the manifest agree with a changed file."""
    manifest = json.loads((run_dir / "manifest.json").read_text())
    manifest["sha256"][name] = checksum(run_dir / name)
    (run_dir / "manifest.json").write_text(json.dumps(manifest))


def refusal(run_dir: Path, kind: type[Exception] = CheckpointError) -> str:
    """The one line that loading the run fails with."""
    with pytest.raises(kind) as caught:
        impresa.load(run_dir, "cpu")
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message
