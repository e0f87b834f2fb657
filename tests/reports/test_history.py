"""Curves from metrics files as they come: gaps, other columns, cut lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from impresa.reports.charts import Curve, read_history


def write(tmp_path: Path, text: str) -> dict[str, Curve]:
    (tmp_path / "metrics.csv").write_text(text, encoding="utf-8")
    return read_history(tmp_path)


def test_gaps_words_and_cut_lines_are_left_out(tmp_path: Path) -> None:
    history = write(tmp_path, "step,train_loss,lr,note\n1,3,0.1,hello\n2,,0.2,\n3,inf,0.3,\n,1,1,\n4,2.5\n5,")
    assert history == {"train_loss": Curve((1, 4), (3, 2.5)), "lr": Curve((1, 2, 3), (0.1, 0.2, 0.3))}


def test_steps_are_put_in_order(tmp_path: Path) -> None:
    assert write(tmp_path, "step,lr\n3,0.3\n1,0.1\n")["lr"] == Curve((1, 3), (0.1, 0.3))


@pytest.mark.parametrize("text", ["", "step,lr\n", "loss\n1\n", "step\n1\n", "step,lr\n1,0.1,9,9\n\x00\xff"])
def test_odd_files_do_not_fail(tmp_path: Path, text: str) -> None:
    assert set(write(tmp_path, text)) <= {"lr"}


def test_no_file(tmp_path: Path) -> None:
    assert read_history(tmp_path) == {}
