"""The least versions of what opens other people's files, and the versions that are installed together."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
WITH_KNOWN_HOLES = {"pillow": "12.1.99", "soundfile": "0.13.0", "torch": "2.5.99"}


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def test_versions_with_known_holes_are_not_installed() -> None:
    allowed = {found.name: found.specifier for found in requirements()}
    assert [name for name, version in WITH_KNOWN_HOLES.items() if version in allowed[name]] == []


def test_the_constraints_meet_every_requirement() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {name.lower(): Version(version) for name, _, version in (line.partition("==") for line in lines) if version}
    unmet = [
        str(found) for found in requirements() if pins.get(found.name.lower(), Version("0")) not in found.specifier
    ]
    assert [text for text in unmet if Requirement(text).name.lower() in pins] == []
