"""The picture of a study's page for the documentation."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from browser import WITH_CHROMIUM

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(DOCS)
    import draw_ablation

    return draw_ablation


@WITH_CHROMIUM
def test_upper_part_of_the_page_is_drawn(tmp_path: Path, script: ModuleType) -> None:
    (tmp_path / "ablation.html").write_text('<body style="margin:0;background:#14803c"><p>verdicts</p></body>')
    picture = tmp_path / "docs" / "study.png"
    assert script.main([str(tmp_path), str(picture), "--height", "300"]) == 0
    with Image.open(picture) as image:
        assert image.size == (2 * script.WIDTH_PX, 600)
        assert image.convert("RGB").getpixel((2000, 500)) == (0x14, 0x80, 0x3C)


def test_a_study_without_a_page_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], script: ModuleType
) -> None:
    assert script.main([str(tmp_path), str(tmp_path / "out.png")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out.png").exists()
