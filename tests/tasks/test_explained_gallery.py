"""The report's section on what a model looks at: a few pictures of every finished run, checked when they are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from impresa.errors import CheckpointError
from impresa.evaluation.results import read_evaluation
from impresa.reports.html import render_report
from impresa.tasks.gallery import NUM_MAPS
from tiny_run import copy_of_run, finished_run
from tiny_vlm import finished_vlm


@pytest.mark.parametrize("kind", ["alignment", "answers"])
def test_a_finished_run_shows_a_few_pictures(kind: str) -> None:
    run_dir = finished_run() if kind == "alignment" else finished_vlm()
    evaluation = read_evaluation(run_dir)
    assert evaluation is not None
    explained = evaluation.gallery.explained
    assert len(explained) == len({picture.image for picture in explained}) == 3
    for picture in explained:
        assert picture.words
        assert 1 <= len(picture.maps) <= NUM_MAPS
    titles = [shown.title.split(":")[0] for shown in explained[0].maps]
    if kind == "alignment":
        assert titles == ["Text", "CLS", "Memory, as it reads", "Memory, as it looks"]
    else:
        assert set(titles) == {"Answer tokens on the picture"}
    page = render_report(run_dir)
    assert "What it looks at" in page
    assert all(shown.image in page for picture in explained for shown in picture.maps)


def test_a_picture_from_elsewhere_is_refused(tmp_path: Path) -> None:
    run_dir = copy_of_run(tmp_path / "run")
    path = run_dir / "evaluation" / "gallery.json"
    gallery = json.loads(path.read_text())
    gallery["explained"][0]["maps"][0]["image"] = "https://example.org/x.png"
    path.write_text(json.dumps(gallery))
    with pytest.raises(CheckpointError, match=r"gallery.*explained"):
        read_evaluation(run_dir)


def test_a_gallery_of_an_older_run_has_none(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run(), run_dir)
    path = run_dir / "evaluation" / "gallery.json"
    gallery = json.loads(path.read_text())
    del gallery["explained"]
    path.write_text(json.dumps(gallery))
    assert "What it looks at" not in render_report(run_dir)
