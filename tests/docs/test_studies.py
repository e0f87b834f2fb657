"""The tables of docs/ablations.md are those of the stored results, and the shipped studies can be planned."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from impresa.ablation.report import read_results
from impresa.ablation.study import make_study, variants_of

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "configs" / "studies").glob("*.yaml"))
ALONE = ("pooling", "memory", "mrl", "loss")
"""Studies that stand on no other run."""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "docs")
    import write_studies

    return write_studies


def test_stored_tables_are_those_of_the_stored_results(script: ModuleType) -> None:
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run python docs/write_studies.py"


def test_stored_results_are_those_of_the_shipped_studies(script: ModuleType) -> None:
    for path in script.STORED:
        stored = read_results(path)
        shipped = make_study(f"studies/{path.stem}", [], seeds=None, metrics=None, design=None, null=False)
        assert stored.study.switches == shipped.switches
        assert stored.study.metrics == shipped.metrics
        assert stored.study.seeds == shipped.seeds
        assert all(run.status == "finished" for run in stored.runs)


@pytest.mark.parametrize("name", ALONE)
def test_a_shipped_study_can_be_planned(name: str) -> None:
    study = make_study(f"studies/{name}", [], seeds=None, metrics=None, design=None, null=False)
    assert len(study.seeds) == 5
    assert len(variants_of(study)) >= 3


def test_each_study_begins_with_the_command_that_runs_it() -> None:
    for path in STUDIES:
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# ")
        assert first.endswith((f"studies/{path.stem}", f"studies/{path.stem} --jobs 2"))
