"""The page of a study in a browser: nothing is refused or fetched, and it fits a phone."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from browser import WITH_CHROMIUM, opened, visit
from impresa.ablation.findings import find
from impresa.ablation.report import render_page
from made_up_study import NAMES, made_up_study, with_failed

pytestmark = WITH_CHROMIUM
PHONE_PX = 390


@pytest.fixture(scope="module", params=[NAMES[2:], NAMES[:3]], ids=["panels", "together"])
def page(request: pytest.FixtureRequest) -> str:
    return render_page(find(with_failed(made_up_study(request.param), 7)))


def overhang(page: str, folder: Path) -> int:
    """Pixels by which the page is wider than a phone."""
    script = "const all = document.documentElement; parent.document.title = `by ${all.scrollWidth - all.clientWidth}`"
    inside = re.sub("<meta http-equiv[^>]*>", "", page).replace("</body>", f"<script>{script}</script></body>")
    frame = f'<iframe style="width:{PHONE_PX}px;height:800px;border:0" srcdoc="{html.escape(inside)}"></iframe>'
    found = re.search(r"<title>by (\d+)</title>", opened(f"<!DOCTYPE html>{frame}", folder))
    assert found
    return int(found[1])


def test_console_stays_empty(page: str, tmp_path: Path) -> None:
    assert visit(page, tmp_path).console == []
    refused = page.replace("<main>", '<main><img src="http://127.0.0.1:9/picture">')
    assert visit(refused, tmp_path).console  # tells what the policy refuses


def test_page_fits_a_phone(page: str, tmp_path: Path) -> None:
    assert overhang(page, tmp_path) == 0
    assert overhang(page.replace('class="card scroll"', 'class="card"'), tmp_path) > 0  # without a box of its own
