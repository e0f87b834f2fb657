from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from packaging.version import Version

FILE = Path(__file__).parents[1] / "tools" / "audit.py"


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_version_that_we_pin_or_allow_is_vulnerable(audit: ModuleType) -> None:
    assert list(audit.in_list()) == []
    assert {"torch", "pillow", "soundfile"} <= {name for name, _ in audit.floors()}
    assert len(list(audit.pins())) > 50


def test_a_vulnerable_version_is_named_with_the_release_that_mends_it(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "pins", lambda: iter([("torch", Version("2.5.1"))]))
    assert "constraints.txt: torch 2.5.1 has CVE-2025-32434; 2.6 has not" in list(audit.in_list())


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        ('{"dependencies": [{"name": "a", "skip_reason": "not found"}]}', None),
        ("no JSON", None),
        (
            '{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1"}]}]}',
            ["constraints.txt: a 1 has CVE-1"],
        ),
    ],
)
def test_advisories_count_where_they_can_be_reached(
    printed: str, found: list[str] | None, audit: ModuleType, tmp_path: Path
) -> None:
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\necho '{printed}'\n")
    program.chmod(0o755)
    advisories = audit.in_advisories(str(program))
    assert (advisories if advisories is None else list(advisories)) == found


def test_a_program_that_is_not_there_is_no_advisory(audit: ModuleType) -> None:
    assert audit.in_advisories("/no/such/program") is None
