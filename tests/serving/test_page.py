"""The page of a server in a browser: real clicks and keys, desktop and phone, light and dark, a clean console."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import impresa
from browser import WITH_CHROMIUM
from browser_tab import Tab, tab_of
from impresa.run_dir.load import load_embedder
from impresa.serving import page_routes
from impresa.serving.app import make_app
from impresa.serving.settings import Settings
from impresa.tasks.answering.answerer import AnsweringModel
from served import served
from some_index import indexed, matryoshka_run, square, table
from sounds_on_disk import write_wavs
from tiny_run import HEARING, finished_run
from tiny_vlm import finished_vlm
from untrained_run import untrained

pytestmark = WITH_CHROMIUM
HOSTILE = "<img src=x onerror=\"document.title='taken'\"></script><script>document.title='taken'</script>\u202eabc"
CARDS = "document.querySelectorAll('#results button').length"
FOUND = "document.querySelector('#status').textContent.endsWith('results') && !document.body.classList.contains('busy')"
KEY = "k-0123456789"
KEYS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    data = table(folder / "squares", 30)
    square(data / "hostile.png", 34)
    lines = (data / "metadata.jsonl").read_text()
    (data / "metadata.jsonl").write_text(lines + json.dumps({"image": "hostile.png", "caption": HOSTILE}) + "\n")
    indexed(folder / "i", data, run=matryoshka_run())
    return folder


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[str]:
    with served(make_app(Settings(run=matryoshka_run(), index=str(place / "i")))) as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab_of(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab, server: str) -> Iterator[Tab]:
    """The page, ready; whatever is done with it, nothing may complain."""
    browser.console.clear()
    browser.open(server)
    browser.until("!document.querySelector('#search').hidden")
    yield browser
    assert browser.console == []


def text(tab: Tab, selector: str) -> str:
    return str(tab.value(f"document.querySelector({json.dumps(selector)}).textContent"))


def search_by_words(tab: Tab, words: str = "a red circle") -> None:
    tab.click("#words")
    tab.type(words)
    tab.click("#go")
    tab.until(FOUND)


def test_search_by_words_and_neighbours_by_the_mouse(tab: Tab, server: str) -> None:
    assert text(tab, "h1") == "shapes"
    assert text(tab, "#about") == "31 rows, 16 dimensions"
    search_by_words(tab)
    assert tab.value(CARDS) == 24
    assert text(tab, "#status") == "24 results"
    assert tab.value("[...document.querySelectorAll('#results img')].every((one) => one.complete && one.naturalWidth)")
    score = "document.querySelector('#results button .facts').textContent"
    assert float(tab.value(score).split()[0]) < 1
    tab.click("#results li:nth-child(3) button")
    tab.until(f"{FOUND} && {score}.startsWith('1.000')")
    assert tab.value("document.querySelector('#words').value") == ""
    assert tab.value("document.querySelectorAll('#parts li').length") == 1
    tab.click("#parts button")
    assert tab.value("document.querySelectorAll('#parts li').length") == 0
    hosts = tab.value("performance.getEntriesByType('resource').map((one) => new URL(one.name).origin)")
    assert set(hosts) == {server}


def test_the_slider_shows_recall_and_latency_live(tab: Tab) -> None:
    search_by_words(tab)
    assert text(tab, "#dimension-now") == "16 of 16"
    assert text(tab, "#recall") == "100% of the nearest 24"
    tab.value("document.querySelector('#dimension').focus()")
    tab.press("ArrowLeft", 2)
    tab.until(f"{FOUND} && document.querySelector('#recall').textContent !== '100% of the nearest 24'")
    assert text(tab, "#dimension-now") == "4 of 16"
    assert tab.value("document.querySelector('#dimension').getAttribute('aria-valuetext')") == "4 of 16"
    assert re.fullmatch(r"\d+% of the nearest 24", text(tab, "#recall"))
    for figure in ("#scan", "#exact"):
        assert re.fullmatch(r"[\d.]+ ms", text(tab, figure))
    tab.click("#again")  # 480 candidates are all there are
    tab.until("document.querySelector('#recall').textContent === '100% of the nearest 24'")


def give(tab: Tab, file: Path, kind: str, event: str) -> None:
    """Drop or paste a file, for which the system has this type."""
    tab.value(f"""(() => {{
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array({list(file.read_bytes())})], "{file.name}", {{type: "{kind}"}}));
      const options = {{bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer}};
      const kind = {{drop: DragEvent, paste: ClipboardEvent}}["{event}"];
      document.querySelector("#words").dispatchEvent(new kind("{event}", options));
    }})()""")


def test_pictures_are_chosen_dropped_and_pasted(tab: Tab, place: Path) -> None:
    first = "document.querySelector('#results button .facts bdi')?.textContent"
    tab.choose("#picture", place / "squares" / "6.png")
    tab.until(f"{FOUND} && {first} === '6.png'")
    assert text(tab, "#parts bdi") == "6.png"
    for event, number in (("drop", 8), ("paste", 12)):
        give(tab, place / "squares" / f"{number}.png", "image/png", event)
        tab.until(f"{FOUND} && {first} === '{number}.png'")
    assert tab.value("document.querySelectorAll('#parts li').length") == 1


def test_words_of_the_data_are_words(tab: Tab, place: Path) -> None:
    tab.choose("#picture", place / "squares" / "hostile.png")
    tab.until(f"{FOUND} && document.querySelector('#results .facts bdi').textContent === 'hostile.png'")
    assert text(tab, "#results .words") == HOSTILE
    tab.click("#results button")
    tab.until("document.querySelector('#parts bdi').textContent.startsWith('<img')")
    tab.until(FOUND)
    assert text(tab, "#parts bdi") == HOSTILE
    assert tab.value("document.title") == "shapes: Impresa"
    assert tab.value("document.querySelectorAll('main script').length") == 0


def test_everything_works_by_keys_alone(tab: Tab) -> None:
    focus = "document.activeElement.id"
    tab.press("Tab")
    assert tab.value(focus) == "words"
    tab.type("a blue star")
    tab.press("Enter")
    tab.until(FOUND)
    order = []
    outlined = "document.querySelector('[type=file]:focus + label') ?? document.activeElement"
    for _ in range(5):
        tab.press("Tab")
        order.append(tab.value(focus))
        assert tab.value(f"getComputedStyle({outlined}).outlineStyle") == "solid", order
    assert order == ["go", "picture", "dimension", "again", ""]
    assert tab.value("document.activeElement.matches('#results li:first-child button')")
    tab.press("Tab")
    tab.press("Enter")
    tab.until("document.querySelectorAll('#parts li').length === 1")
    tab.until(f"{FOUND} && document.querySelector('#results .facts').textContent.startsWith('1.000')")


def test_a_screen_reader_is_told_names_results_and_errors(tab: Tab) -> None:
    tab.click("#go")
    assert text(tab, "#error") == "Say what to search for, or add a picture."
    search_by_words(tab)
    assert text(tab, "#error") == ""
    tab.choose("#picture", Path(__file__))
    tab.until("document.querySelector('#error').textContent")
    assert "nothing that can be searched for" in text(tab, "#error")
    tab.send("Accessibility.enable")
    nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
    named: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for role in ("button", "searchbox", "slider", "checkbox"):
        assert named[role], role
        assert all(named[role]), (role, named[role])
    assert named["searchbox"] == ["Search by words"]
    assert "alert" in named
    assert "status" in named
    assert tab.value("document.querySelector('.figures').getAttribute('aria-live')") == "polite"


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_and_has_two_colour_schemes(tab: Tab, server: str, width: int, dark: bool) -> None:
    tab.open(server, width=width, dark=dark)
    tab.until("!document.querySelector('#search').hidden")
    search_by_words(tab)
    assert tab.value("innerWidth") == width
    assert tab.value("document.documentElement.scrollWidth") <= width
    background = tab.value("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(17, 21, 27)" if dark else "rgb(246, 247, 249)")


def test_markup_that_got_in_does_not_run(tab: Tab) -> None:
    attack = "Object.assign(document.createElement('script'), {textContent: 'window.taken = true'})"
    tab.value(f"document.body.append({attack})")
    tab.value("document.body.insertAdjacentHTML('beforeend', '<img src=x: onerror=\"window.taken = true\">')")
    assert tab.value("window.taken ?? 'not taken'") == "not taken"
    tab.until("new Promise((done) => setTimeout(() => done(true), 200))")
    assert tab.value("window.taken ?? 'not taken'") == "not taken"
    assert any("Content Security Policy" in line for line in tab.console)
    tab.console.clear()


def test_the_headers_of_the_page(server: str) -> None:
    for path in page_routes.PATHS:
        answer = httpx.get(server + path)
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; ")
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert httpx.get(f"{server}/page/../app.py").status_code == 404
    assert httpx.get(f"{server}/page/index.html").status_code == 404


def test_a_run_without_an_index_says_how_to_make_one(browser: Tab) -> None:
    browser.console.clear()
    with served(make_app(Settings(run=finished_run()))) as address:
        browser.open(address)
        browser.until("!document.querySelector('#no-index').hidden")
        assert "impresa index RUN photos/ --out photos.index" in text(browser, "#no-index")
        assert browser.value("document.querySelector('#search').hidden")
    assert browser.console == []


def test_it_asks_about_a_picture_and_shows_the_answer_as_it_comes(browser: Tab, place: Path) -> None:
    browser.console.clear()
    with served(make_app(Settings(run=finished_vlm()))) as address:
        browser.open(address)
        browser.until("!document.querySelector('#ask').hidden")
        browser.click("#question")
        browser.type("how many shapes are there?")
        browser.click("#ask-go")
        assert text(browser, "#ask-error") == "Choose a picture first."
        browser.choose("#subject-file", place / "squares" / "6.png")
        browser.until("!document.querySelector('#subject').hidden")
        browser.value("""(() => {
          window.seen = new Set();
          const note = () => seen.add(document.querySelector("#answer").textContent);
          new MutationObserver(note).observe(document.querySelector("#answer"), {childList: true});
        })()""")
        browser.click("#question")
        browser.press("Enter")
        browser.until("document.querySelector('#answer').ariaBusy === 'false'")
        assert text(browser, "#ask-error") == ""
        model = impresa.load(finished_vlm(), "cpu")
        assert isinstance(model, AnsweringModel)
        expected = model.ask(place / "squares" / "6.png", "how many shapes are there?")
        assert text(browser, "#answer") == expected
        assert browser.value("seen.size") > 1
        assert browser.value("document.querySelector('#stop').hidden")
    assert browser.console == []


def test_sounds_are_searched_for_and_played(browser: Tab, tmp_path: Path) -> None:
    folder = tmp_path / "sounds"
    folder.mkdir()
    write_wavs(folder, 4)
    run, index = untrained(tmp_path / "run", *HEARING), tmp_path / "i"
    indexed(index, folder, modalities=("audio",), run=run, model=lambda: load_embedder(run, "cpu"))
    browser.console.clear()
    with served(make_app(Settings(run=run, index=str(index), api_key=KEY))) as address:
        browser.open(address)
        browser.until("!document.querySelector('#key-form').hidden")
        browser.type(KEY)
        browser.press("Enter")
        browser.until("!document.querySelector('#search').hidden")
        first = "document.querySelector('#results button .facts bdi')?.textContent"
        browser.choose("#sound", folder / "2.wav")
        browser.until(f"{FOUND} && {first} === '2.wav'")
        give(browser, folder / "1.wav", "", "drop")  # as systems do that know no type for it
        browser.until(f"{FOUND} && {first} === '1.wav'")
        assert browser.value(CARDS) == 8, "a card and a player for each"
        browser.click("#results li:first-child .play")
        browser.until("document.querySelector('#results li:first-child audio')?.duration > 0.4")
        browser.until("document.querySelector('#results li:first-child audio').currentTime > 0")
        assert text(browser, "#error") == ""
        found = httpx.post(f"{address}/search", json={"text": "a"}, headers=KEYS).json()["results"]
        ids = [row["sound"] for row in found]
        answer = httpx.get(f"{address}/{ids[0]}", headers=KEYS)
        assert (answer.headers["content-type"], answer.content[:4]) == ("audio/wav", b"RIFF")
        assert httpx.get(f"{address}/{ids[0]}").status_code == 401
        for file in folder.iterdir():
            file.write_text("secret")  # no sound any more
        assert {httpx.get(f"{address}/{id}", headers=KEYS).status_code for id in (*ids, "sounds/x")} == {404}
    assert all("401" in line for line in browser.console)


def test_it_asks_for_the_key_and_sends_it(browser: Tab, place: Path) -> None:
    with served(make_app(Settings(run=matryoshka_run(), index=str(place / "i"), api_key=KEY))) as address:
        browser.open(address)
        browser.until("!document.querySelector('#key-form').hidden")
        assert browser.value("document.activeElement.id") == "key"
        browser.type("wrong")
        browser.press("Enter")
        browser.until("document.querySelector('#key-help').textContent === 'The server does not know this key.'")
        browser.value("document.querySelector('#key').value = ''")
        browser.click("#key")
        browser.type(KEY)
        browser.press("Enter")
        browser.until("!document.querySelector('#search').hidden")
        assert browser.value("document.querySelector('#key-form').hidden")
        search_by_words(browser)
        assert browser.value(CARDS) == 24
    assert all("401" in line for line in browser.console)  # which the browser writes itself
