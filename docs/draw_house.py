"""Draw the parts of the package and what imports what: `python docs/draw_house.py` writes docs/images/house.svg.

Read from the source, so that the picture stays true; a test compares it with the stored one. A part stands above all
parts that it imports. Arrows that follow from others are left out.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import TopologicalSorter
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "impresa"
PICTURE = ROOT / "docs" / "images" / "house.svg"
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 176, 66, 20, 40, 20
LINE_CHARACTERS, NUM_LINES = 27, 3
BELOW_MODELS = {
    **dict.fromkeys(("layout", "environment", "lock", "cost", "manifest"), "run_dir.layout"),
    **dict.fromkeys(("weights", "integrity", "golden"), "run_dir.weights"),
}
"""Modules of `run_dir` that know no models, and the part that each is drawn as."""
STYLE = """
    .part { fill: #f4f6fb; stroke: #5b6ea8; stroke-width: 1.5; }
    .name { font-weight: 600; font-size: 14px; fill: #1f2a4a; }
    .note { font-size: 11px; fill: #4a5470; }
    .arrow { stroke: #9aa6cc; stroke-width: 1.3; fill: none; marker-end: url(#tip); }
"""


def part_of(module: str) -> str | None:
    """The part that a module `impresa.a.b` belongs to; None for the package itself."""
    names = module.split(".")[1:]
    if names[:1] == ["run_dir"] and names[1:] and names[1] in BELOW_MODELS:
        return BELOW_MODELS[names[1]]
    return names[0] if names and names[0] not in ("__init__", "__main__") else None


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Name and syntax tree of each module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        names = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(names), ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    """Modules of ours that a module imports anywhere; those for type checkers only do not count."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("impresa."):
            yield node.module
        todo += ast.iter_child_nodes(node)


def find_parts() -> tuple[dict[str, set[str]], dict[str, str]]:
    """For each part the parts that it imports, and its one-line description."""
    below: dict[str, set[str]] = {}
    notes: dict[str, str] = {}
    for module, tree in modules():
        part = part_of(module)
        if part is None:
            continue
        others = {part_of(name) for name in imports(tree)} - {part, None}
        below.setdefault(part, set()).update(others)  # type: ignore[arg-type]
        if module.removeprefix("impresa.").removesuffix(".__init__") == part:
            notes[part] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return below, notes


def levels_of(below: Mapping[str, set[str]]) -> dict[str, int]:
    """For each part the length of the longest way down from it.

    Raises:
        graphlib.CycleError: the imports have a circle.
    """
    levels: dict[str, int] = {}
    for part in TopologicalSorter(below).static_order():
        levels[part] = max((levels[other] + 1 for other in below[part]), default=0)
    return levels


def without_shortcuts(below: Mapping[str, set[str]]) -> Iterator[tuple[str, str]]:
    """The imports that follow from no others."""

    @cache
    def reach(part: str) -> frozenset[str]:
        return frozenset(below[part]).union(*(reach(other) for other in below[part]))

    for part, others in sorted(below.items()):
        yield from ((part, other) for other in sorted(others) if not any(other in reach(o) for o in others - {other}))


def draw() -> str:
    """The picture as SVG."""
    below, notes = find_parts()
    levels = levels_of(below)
    rows = [sorted(part for part in levels if levels[part] == number) for number in range(max(levels.values()) + 1)]
    width = 2 * MARGIN + max(map(len, rows)) * (WIDTH + GAP_X) - GAP_X
    height = 2 * MARGIN + len(rows) * (HEIGHT + GAP_Y) - GAP_Y
    corner = {
        part: ((width - len(row) * (WIDTH + GAP_X) + GAP_X) // 2 + index * (WIDTH + GAP_X), MARGIN + y)
        for y, row in zip(range(0, height, HEIGHT + GAP_Y), reversed(rows), strict=False)
        for index, part in enumerate(row)
    }
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif">',
        f"  <style>{STYLE}  </style>",
        '  <defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#9aa6cc"/></marker></defs>',
        f'  <rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for upper, lower in without_shortcuts(below):
        (x, y), (other_x, other_y) = corner[upper], corner[lower]
        lines.append(
            f'  <path class="arrow" d="M{x + WIDTH // 2} {y + HEIGHT} L{other_x + WIDTH // 2} {other_y - 2}"/>'
        )
    for part, (x, y) in corner.items():
        lines.append(f'  <rect class="part" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="8"/>')
        lines.append(f'  <text class="name" x="{x + 10}" y="{y + 20}">{escape(part)}</text>')
        note = textwrap.wrap(notes.get(part, ""), LINE_CHARACTERS, max_lines=NUM_LINES, placeholder=" …")
        for number, text in enumerate(note):
            lines.append(f'  <text class="note" x="{x + 10}" y="{y + 35 + 12 * number}">{escape(text)}</text>')
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
