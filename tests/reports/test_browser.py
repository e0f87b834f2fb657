"""Pages in a browser: nothing in them runs or is fetched, whatever the files hold that they are made from."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from browser import needs_chromium, opened
from fake_model import ColourModel, colour_source
from impresa.evaluation.results import save_evaluation
from impresa.reports.html import render_report
from impresa.tasks.alignment.evaluate import evaluate

pytestmark = needs_chromium


class Listener:
    """A server on this machine that keeps the paths it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def listener() -> Iterator[Listener]:
    found = Listener()
    yield found
    found.server.shutdown()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    run_dir = tmp_path_factory.mktemp("run")
    source = colour_source(12, labels=True)
    model = ColourModel.with_templates("a {} thing")
    save_evaluation(evaluate(model, source, data="squares", train_source=source), run_dir)
    return render_report(run_dir)


ATTACKS = """<img src="{0}/img"><link rel="stylesheet" href="{0}/css"><script src="{0}/script"></script>
<script>document.body.append("scripted")</script><iframe src="{0}/frame"></iframe><style>@import url("{0}/import");
main {{ background: url("{0}/background") }}</style><object data="{0}/object"></object>
<video src="{0}/video" autoplay></video><svg><image href="{0}/svg"/></svg>"""


def test_even_markup_that_got_into_a_page_fetches_and_runs_nothing(
    page: str, tmp_path: Path, listener: Listener
) -> None:
    attacks = ATTACKS.format(listener.address)
    dom = opened(page.replace("<main>", f"<main>{attacks}"), tmp_path)
    assert "Impresa run report" in dom
    assert dom.count("scripted") == 1  # in the script itself
    assert listener.asked == []


def test_the_attacks_would_work_on_a_page_without_a_policy(tmp_path: Path, listener: Listener) -> None:
    attacks = ATTACKS.format(listener.address)
    dom = opened(f"<!DOCTYPE html><body><main>{attacks}</main>", tmp_path)
    assert dom.count("scripted") == 2
    assert {"/img", "/script", "/css"} <= set(listener.asked)


def test_the_report_shows_its_pictures(page: str, tmp_path: Path) -> None:
    """The policy allows them: the colours of the squares are on a screenshot."""
    opened(page, tmp_path, f"--screenshot={tmp_path / 'page.png'}", "--window-size=1000,4000")
    found = Image.open(tmp_path / "page.png").convert("RGB").getcolors(2**24)
    colours = {colour: count for count, colour in found or ()}
    square = colour_source(12).items[0].image.getpixel((0, 0))
    assert colours.get(square, 0) > 1000
