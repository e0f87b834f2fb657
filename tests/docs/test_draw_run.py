"""The picture of a run in the README."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from fake_model import ColourModel, colour_source
from impresa.errors import CheckpointError
from impresa.evaluation.results import Evaluation, save_evaluation
from impresa.tasks.alignment.evaluate import evaluate

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(DOCS)
    import draw_run

    return draw_run


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    source = colour_source(24, labels=True)
    return evaluate(ColourModel(), source, data="squares", train_source=source)


def test_figure_is_drawn_for_an_evaluated_run(tmp_path: Path, evaluation: Evaluation, script: ModuleType) -> None:
    save_evaluation(evaluation, tmp_path)
    without_curve = script.write_figure(tmp_path, tmp_path / "a.png").read_bytes()
    (tmp_path / "metrics.csv").write_text("step,train_loss,val_loss\n1,5,\n9,2,3\n")
    assert script.main([str(tmp_path), str(tmp_path / "docs" / "b.png")]) == 0
    assert (tmp_path / "docs" / "b.png").read_bytes() != without_curve
    with Image.open(tmp_path / "docs" / "b.png") as picture:
        assert picture.size == (1800, 990)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert {(21, 128, 61), (194, 51, 61)} <= colours  # frames of right and wrong answers


def test_figure_needs_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str], script: ModuleType) -> None:
    with pytest.raises(CheckpointError, match="no retrieval examples"):
        script.write_figure(tmp_path, tmp_path / "out.png")
    assert script.main([str(tmp_path), str(tmp_path / "out.png")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out.png").exists()
