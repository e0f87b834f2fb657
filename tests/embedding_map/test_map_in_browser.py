"""The page of a map in a browser: it draws, it answers to keys and clicks, it runs no words of the data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from browser import WITH_CHROMIUM, opened, visit
from fake_model import ColourModel, ListSource, colour_source
from impresa.data.sample import Sample
from impresa.embedding_map.draw import draw_map

pytestmark = WITH_CHROMIUM
HOSTILE = '</script><script>document.title="taken"</script><img src=x onerror="document.title=1">\u202eabc'
ACTS = """
const report = [], said = (name, text) => report.push(name + "=" + text);
const $ = (id) => document.getElementById(id), status = () => $("status").textContent;
const key = (name) => $("plane").dispatchEvent(new KeyboardEvent("keydown", {key: name, cancelable: true}));
const shot = () => $("plane").toDataURL();
const frame = () => new Promise((done) => setTimeout(done, 100));
(async () => {
  await frame();
  said("all", status());
  const first = shot();
  key("+"); await frame(); said("zoomed", shot() !== first);
  key("0"); await frame(); said("back", shot() === first);
  $("centred").click(); await frame(); said("centred", shot() !== first);
  $("centred").click(); await frame(); said("as it was", shot() === first);
  $("search").value = " GREEN square 1 0"; $("search").dispatchEvent(new Event("input"));
  said("found", status());
  document.querySelector("#list button").click();
  said("chosen", $("chosen").querySelector(".words").textContent);
  said("neighbours", $("chosen").querySelectorAll(".score").length);
  said("texts", [...$("chosen").querySelectorAll("h3")].map((title) => title.textContent).join());
  $("chosen").querySelector(".rows button").click();
  said("partner", $("chosen").querySelector(".words").textContent);
  $("search").value = ""; $("search").dispatchEvent(new Event("input"));
  document.querySelectorAll("#legend input")[1].click();
  said("without texts", status());
  const box = $("plane").getBoundingClientRect(), heading = () => $("chosen").querySelector("h2").textContent;
  for (let x = 0; x < box.width && heading() === "Chosen point"; x += 4) for (let y = 0; y < box.height; y += 4) {
    $("plane").dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + x, clientY: box.top + y}));
    if (heading() !== "Chosen point") break;
  }
  said("hovered", heading());
  $("plane").dispatchEvent(new PointerEvent("pointerleave", {}));
  said("left", $("chosen").querySelector(".words").textContent);
  document.body.append(Object.assign(document.createElement("pre"), {id: "report", textContent: report.join("\\n")}));
})();
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    items = colour_source(24, labels=True).items
    items.append(Sample(HOSTILE, Image.new("RGB", (8, 8), (90, 90, 90)), (HOSTILE,), label=HOSTILE))
    folder = tmp_path_factory.mktemp("out") / "map"
    sources = {"train": ListSource(items[:12]), "test": ListSource(items[12:])}
    found = draw_map(ColourModel(), sources, folder, name="run", data="squares")
    return found.page.read_text(encoding="utf-8")


def test_it_opens_without_errors_and_runs_no_words_of_the_data(page: str, tmp_path: Path) -> None:
    found = visit(page, tmp_path)
    assert found.console == []
    assert "50 of 50 points shown" in found.dom
    assert "<title>run: map of the embedding space</title>" in found.dom
    assert "&lt;img src=x onerror" in found.dom
    assert "<img src=x" not in found.dom


def test_the_policy_stops_markup_that_got_in(page: str, tmp_path: Path) -> None:
    attack = '<script>document.body.append("scripted")</script>'
    assert opened(page.replace("<main>", f"<main>{attack}"), tmp_path).count("scripted") == 1  # in itself


def test_keys_search_list_and_legend_work(page: str, tmp_path: Path) -> None:
    # Without a screen no frame is ever asked for.
    frames = "<script>requestAnimationFrame = (paint) => setTimeout(paint, 0)</script>"
    open_page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', frames, page)
    acted = open_page.replace("</body>", f"<script>{ACTS}</script></body>")
    found = visit(acted, tmp_path, "--virtual-time-budget=5000", "--dump-dom")
    assert found.console == []
    report = found.dom.partition('<pre id="report">')[2].partition("</pre>")[0]
    assert report.splitlines() == [
        "all=50 of 50 points shown",
        "zoomed=true",
        "back=true",
        "centred=true",
        "as it was=true",
        "found=2 found, 50 of 50 points shown",  # the image and its text
        "chosen=square-1",
        "neighbours=10",
        "texts=Its texts,Nearest points, and their distance",
        "partner=green square 1 0",
        "without texts=25 of 50 points shown",
        "hovered=Under the pointer",
        "left=green square 1 0",
    ]


@pytest.mark.parametrize("width", [390, 1200])
def test_pictures_are_drawn_and_nothing_sticks_out(page: str, tmp_path: Path, width: int) -> None:
    """A window is at least 500 pixels wide; a frame is as narrow as one likes."""
    (tmp_path / "map.html").write_text(page, encoding="utf-8")
    frame = f'<body style="margin:0"><iframe src="map.html" style="width:{width}px;height:1000px;border:0"></iframe>'
    opened(frame, tmp_path, "--hide-scrollbars", f"--screenshot={tmp_path / 'page.png'}", "--window-size=1300,1000")
    shown = Image.open(tmp_path / "page.png").convert("RGB")
    colours = {colour: count for count, colour in shown.getcolors(2**24) or ()}
    red = [count for (r, g, b), count in colours.items() if r > 200 and abs(g - 20) < 12 and abs(b - 20) < 12]
    assert sum(red) > 300
    edge = shown.crop((width - 8, 0, width, 1000)).getcolors(2**24)
    assert edge is not None
    assert len(edge) == 1  # the page's margin: nothing of the page reaches it, so that it is not too wide
