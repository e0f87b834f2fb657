"""`--to onnx`: each encoder as a file, for any batch; the check's own comparison, in this process. An export of one
encoder takes seconds, all of them torch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import tiny_hub
from impresa.export import export_run
from impresa.export.check import differences
from tiny_pair import pair_experiment
from tiny_run import HEARING
from untrained_run import BARE, save_untrained, untrained

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize(("make", "width"), [(tiny_hub.clip, 20), (tiny_hub.siglip, 32)])
def test_a_pretrained_pair_is_exported(make: Callable[[Path], Path], width: int, tmp_path: Path) -> None:
    run = save_untrained(tmp_path / "run", pair_experiment(make(tmp_path / "hub"), width, projection="none"))
    folder = export_run(run, tmp_path / "out", to="onnx")
    assert {path.name for path in folder.glob("*.onnx")} == {"image.onnx", "text.onnx"}
    assert list(differences("onnx", folder, run)) == []


def test_an_audio_encoder_is_a_file_of_its_own(tmp_path: Path) -> None:
    run = untrained(tmp_path / "run", *BARE, *HEARING)
    folder = export_run(run, tmp_path / "out", to="onnx")
    assert (folder / "audio.onnx").is_file()
    assert list(differences("onnx", folder, run)) == []
