"""Reading the runs of a study: finished, failed, missing and damaged ones."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from impresa.ablation.collect import MAX_POINTS, collect
from impresa.ablation.plan import PlannedRun
from impresa.ablation.results import StudyResult
from impresa.ablation.study import BASE, Study, Switch, Variant
from impresa.config import ExperimentConfig
from impresa.evaluation.results import DirectionMetrics, Evaluation, RetrievalMetrics, save_evaluation
from impresa.run_dir.cost import Cost, write_cost

SWITCH = "losses.type=siglip"
VARIANTS = (Variant(BASE), Variant(SWITCH, (SWITCH,)))
STUDY = Study("shapes", (), (Switch("losses.type", ("siglip",)),), (3, 4), ("recall_at_1",))
COST = Cost(12, 12, None, 100.5, 1 << 30, 81.5)


def evaluation(share: float, rank: float = 2.0) -> Evaluation:
    direction = DirectionMetrics({1: share, 5: share, 10: share}, rank, rank, 8, 8)
    retrieval = RetrievalMetrics(direction, direction)
    return Evaluation("shapes", 8, 8, 8, retrieval=retrieval, by_dimension={16: retrieval})


def planned(seeds: Sequence[int] = STUDY.seeds) -> list[PlannedRun]:
    return [
        PlannedRun(variant, seed, ExperimentConfig(seed=seed), ("shapes",), f"runs/{number}{seed:03d}")
        for number, variant in enumerate(VARIANTS)
        for seed in seeds
    ]


def finish(run_dir: Path, share: float = 0.5, rank: float = 2.0) -> None:
    run_dir.mkdir(parents=True)
    save_evaluation(evaluation(share, rank), run_dir)
    write_cost(run_dir, COST)
    (run_dir / "metrics.csv").write_text("step,lr,val_loss,val_recall\n10,0.1,2,0.25\n20,0.1,1,0.5\n")
    (run_dir / "manifest.json").write_text("{}")


@pytest.fixture
def study_dir(tmp_path: Path) -> Path:
    for share, run in enumerate(planned()):
        finish(tmp_path / run.folder, share / 10)
    return tmp_path


def collected(study_dir: Path, failures: Mapping[str, str] | None = None) -> StudyResult:
    return collect(STUDY, VARIANTS, planned(), study_dir, failures or {})


def test_figures_costs_and_curves_of_finished_runs(study_dir: Path) -> None:
    result = collected(study_dir)
    assert [(run.variant, run.seed, run.status) for run in result.runs] == [
        (variant.name, seed, "finished") for variant in VARIANTS for seed in (3, 4)
    ]
    assert result.scores("recall_at_1").tolist() == [[0.0, 0.1], [0.2, 0.3]]
    assert result.scores("recall_at_1@16").tolist() == [[0.0, 0.1], [0.2, 0.3]]
    last = result.runs[-1]
    assert last.cost == COST
    assert {name: (curve.steps, curve.values) for name, curve in last.curves.items()} == {
        "val_loss": ((10, 20), (2, 1)),
        "val_recall": ((10, 20), (0.25, 0.5)),
    }


def test_order_of_the_plan_does_not_matter(study_dir: Path) -> None:
    backwards = collect(STUDY, VARIANTS, planned()[::-1], study_dir, {})
    assert backwards == collected(study_dir)


def test_variants_of_the_same_config_share_a_run(study_dir: Path) -> None:
    one_folder = [replace(run, folder=f"runs/0{run.seed:03d}") for run in planned()]
    result = collect(STUDY, VARIANTS, one_folder, study_dir, {})
    assert result.scores("recall_at_1").tolist() == [[0.0, 0.1], [0.0, 0.1]]
    assert {run.variant for run in result.runs} == {BASE, SWITCH}


def test_missing_and_failed_runs(study_dir: Path) -> None:
    (study_dir / "runs/0004/manifest.json").unlink()
    result = collected(study_dir, {"runs/1003": "the loss is\x1b[31m nan"})
    assert [run.status for run in result.runs] == ["finished", "missing", "failed", "finished"]
    assert result.runs[2].reason == "the loss is\\u001b[31m nan"
    assert not result.runs[2].figures


@pytest.mark.parametrize("text", ["", "{}", "[]", "\x00", '{"data": 3}', "[" * 100_000])
@pytest.mark.parametrize("name", ["evaluation.json", "cost.json"])
def test_damaged_file_makes_a_failed_run_with_its_line(study_dir: Path, name: str, text: str) -> None:
    (study_dir / "runs/0003" / name).write_text(text)
    first, *others = collected(study_dir).runs
    assert first.status == "failed"
    assert name in first.reason
    assert len(first.reason.splitlines()) == 1
    assert not first.figures
    assert first.cost is None
    assert {run.status for run in others} == {"finished"}


def test_run_without_evaluation_names_the_command(study_dir: Path) -> None:
    (study_dir / "runs/0003/evaluation.json").unlink()
    run = collected(study_dir).runs[0]
    assert run.status == "failed"
    assert "impresa eval" in run.reason


def test_run_of_an_older_version_has_no_costs(study_dir: Path) -> None:
    (study_dir / "runs/0003/cost.json").unlink()
    run = collected(study_dir).runs[0]
    assert (run.status, run.cost) == ("finished", None)


@pytest.mark.parametrize("rank", [float("inf"), float("nan"), 1e300])
def test_a_figure_that_is_no_number_is_left_out(tmp_path: Path, rank: float) -> None:
    for run in planned():
        finish(tmp_path / run.folder, 0.5, rank)
    found = collected(tmp_path).runs[0]
    assert found.status == "finished"
    assert "image_to_text_mean_rank" not in found.figures
    assert found.figures["recall_at_1"] == 0.5


def test_long_curves_are_thinned_and_keep_their_ends(study_dir: Path) -> None:
    rows = "\n".join(f"{step},{step / 10}" for step in range(1, 5001))
    (study_dir / "runs/0003/metrics.csv").write_text(f"step,val_loss\n{rows}\n")
    curve = collected(study_dir).runs[0].curves["val_loss"]
    assert len(curve.steps) == MAX_POINTS
    assert (curve.steps[0], curve.steps[-1], curve.values[-1]) == (1, 5000, 500)


def test_a_hundred_runs_are_read_without_their_pictures(tmp_path: Path) -> None:
    study = replace(STUDY, seeds=tuple(range(50)))
    for run in planned(study.seeds):
        finish(tmp_path / run.folder)
        (tmp_path / run.folder / "evaluation/gallery.json").write_text("no JSON at all, and large")
    began = time.process_time()
    result = collect(study, VARIANTS, planned(study.seeds), tmp_path, {})
    assert time.process_time() - began < 3
    assert len(result.with_status("finished")) == 100
