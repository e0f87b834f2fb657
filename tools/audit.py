"""Are versions of our dependencies known to be vulnerable?

    python tools/audit.py [--pip-audit PROGRAM]

Checks the pins of constraints.txt, and the lowest versions that pyproject.toml allows, against the list beside this
file. With pip-audit, and where it reaches its advisories, the pins are checked against those too. Exit code 1 means
that a version is vulnerable.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_name("vulnerable.json")
SECONDS = 120


def pins() -> Iterator[tuple[str, Version]]:
    """Names and versions of constraints.txt."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if found := re.fullmatch(r"([\w.-]+)==(\S+)", line.strip()):
            yield canonicalize_name(found[1]), Version(found[2])


def floors() -> Iterator[tuple[str, Version]]:
    """Names and lowest allowed versions of our own dependencies, those of the extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    for line in (*project["dependencies"], *(line for extra in extras for line in extra)):
        requirement = Requirement(line)
        lowest = [Version(bound.version) for bound in requirement.specifier if bound.operator in {">=", "==", "~="}]
        yield canonicalize_name(requirement.name), max(lowest, default=Version("0"))


def in_list() -> Iterator[str]:
    """Versions that the stored list names."""
    fixed: dict[str, dict[str, str]] = json.loads(LIST.read_text())
    for where, versions in (("constraints.txt", pins()), ("pyproject.toml", floors())):
        for name, version in versions:
            for advisory, release in fixed.get(name, {}).items():
                if version < Version(release):
                    yield f"{where}: {name} {version} has {advisory}; {release} has not"


def in_advisories(program: str) -> Iterator[str] | None:
    """Pins that pip-audit finds vulnerable; None where it cannot reach its advisories."""
    command = [
        program,
        "--requirement",
        str(ROOT / "constraints.txt"),
        "--no-deps",
        "--disable-pip",
        "--format",
        "json",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        found = json.loads(done.stdout)["dependencies"]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError):
        return None
    if all("skip_reason" in dependency for dependency in found):
        return None
    return (
        f"constraints.txt: {dependency['name']} {dependency['version']} has {advisory['id']}"
        for dependency in found
        for advisory in dependency.get("vulns", ())
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pip-audit", help="the program to ask for advisories")
    given = parser.parse_args()
    faults = list(in_list())
    advisories = in_advisories(given.pip_audit) if given.pip_audit else None
    faults += advisories or ()
    how = (
        "the stored list alone, advisories are out of reach" if advisories is None else "the stored list and pip-audit"
    )
    print("\n".join([*faults, f"{len(faults)} vulnerable versions, by {how}"]))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
