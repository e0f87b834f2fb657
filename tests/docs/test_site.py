"""The documentation as a site: built strictly, all pages in its navigation, nothing in them from other hosts.

The build takes some 15 s, for it makes the reference from the docstrings; one for all tests.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}


class Page(HTMLParser):
    """Files that a page loads, and targets of its links."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := found.get(key))}
        if tag == "link" and found.get("rel") == "canonical":
            return
        if value := found.get(LOADED.get(tag, "")):
            self.loaded.append(value)
        if tag == "a" and (value := found.get("href")):
            self.links.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="the site needs pip install 'impresa[docs]'")
    pytest.importorskip("mkdocstrings", reason="the site needs pip install 'impresa[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-f", "mkdocs.yml", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


def test_every_guide_is_a_page_of_the_navigation(pages: dict[str, Page]) -> None:
    guides = {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
    assert guides <= pages.keys()
    assert guides - {"index.html"} <= {link for link in pages["index.html"].links if "#" not in link}


def test_nothing_comes_from_other_hosts(site: Path, pages: dict[str, Page]) -> None:
    elsewhere = {value for page in pages.values() for value in page.loaded if urlsplit(value).netloc}
    assert elsewhere == set()
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^)\"']+", styles) == []


def links_within(site: Path, pages: dict[str, Page]) -> Iterator[tuple[str, str, Path, str]]:
    """Page, link, the file that it names, and the anchor in it."""
    for name, page in pages.items():
        for link in page.links if name != "404.html" else ():
            parts = urlsplit(link)
            if not parts.scheme and not parts.netloc:
                target = (site / name).parent / unquote(parts.path) if parts.path else site / name
                yield name, link, target.resolve(), unquote(parts.fragment)


def test_links_lead_to_what_is_there(site: Path, pages: dict[str, Page]) -> None:
    broken = []
    for name, link, target, anchor in links_within(site, pages):
        file = target / "index.html" if target.is_dir() else target
        known = pages.get(file.relative_to(site).as_posix()) if file.is_relative_to(site) else None
        if not file.is_file() or (anchor and known is not None and anchor not in known.anchors):
            broken.append(f"{name}: {link}")
    assert broken == []


def test_files_outside_of_the_guides_are_in_the_site(site: Path) -> None:
    script = site / "source" / "examples" / "torchrun.sh"
    assert script.read_bytes() == (ROOT / "examples" / "torchrun.sh").read_bytes()
    assert "benchmarks/funnel.py\n" in (site / "source" / "benchmarks.txt").read_text()


def test_the_reference_is_made_of_docstrings(site: Path) -> None:
    text = (site / "reference.html").read_text(encoding="utf-8")
    assert 'id="impresa.load"' in text
    assert "The model of a finished run, ready to embed" in text
