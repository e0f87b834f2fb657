"""Write the results of the ready studies into docs/ablations.md: `python docs/write_studies.py`.

`docs/studies/NAME.json` is the `ablation.json` that `impresa ablate studies/NAME` wrote. In the page, what stands
between `<!-- NAME -->` and `<!-- end NAME -->` is made from it; a test compares the two.
"""

from __future__ import annotations

import re
from pathlib import Path

from impresa.ablation.findings import find
from impresa.ablation.report import read_results, render_markdown

DOCS = Path(__file__).parent
PAGE = DOCS / "ablations.md"
STORED = sorted((DOCS / "studies").glob("*.json"))


def section(path: Path) -> str:
    """The results of one study, as a section of the page."""
    text = render_markdown(find(read_results(path))).partition("## How it was made")[0]
    text = re.sub(r"^## (.*)$", r"**\1**", text, flags=re.MULTILINE)
    text = re.sub(r"^# (.*)$", r"### \1", text, count=1, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def page() -> str:
    """The page with all stored results in their places."""
    text = PAGE.read_text(encoding="utf-8")
    for path in STORED:
        begin, end = f"<!-- {path.stem} -->\n", f"<!-- end {path.stem} -->\n"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise SystemExit(f"{PAGE}: has no place for {path.name}; write {begin.strip()} and {end.strip()} there")
        text = f"{before}{begin}{section(path)}\n{end}{after}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
