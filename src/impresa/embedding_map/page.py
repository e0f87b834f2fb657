"""The points as a page that needs nothing else: its script, its data and its pictures are inside."""

from __future__ import annotations

import base64
import io
import json
import math
import shlex
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from markupsafe import Markup
from PIL import Image

from impresa.data.image_files import open_image
from impresa.embedding_map.layout import Layout, Neighbours
from impresa.embedding_map.points import MODALITIES, TEXT, Points
from impresa.embedding_map.request import Method
from impresa.reports.rendering import render

_MOST_PICTURE_PIXELS = 2000 * 64 * 64
_TILE_PX = (16, 128)
"""The smallest and the largest side of a picture; multiples of 16, so that JPEG's blocks do not run into each other."""
_SHEET_COLUMNS, _SHEET_TILES = 32, 1024
_MOST_SHEET_BYTES = 5 << 20
_QUALITIES = (85, 70, 50, 30)
_MOST_CHARACTERS = 300
"""Of a text on the page; the table has it whole."""
_MOST_PARTNERS = 20
_OF_ATLAS = ("--x", "x", "--y", "y", "--neighbors", "neighbors", "--image", "image", "--text", "caption")


def render_map(
    points: Points,
    plain: Layout,
    centred: Layout,
    neighbours: Neighbours,
    *,
    name: str,
    data: str,
    method: Method,
    notes: Sequence[str],
    table: str,
) -> str:
    """The page as a string.

    Args:
        points: what is drawn.
        plain: where.
        centred: where it is drawn once each modality is centred.
        neighbours: of each point.
        name: of the run.
        data: name of the data.
        method: that made the layouts.
        notes: sentences on what is not drawn.
        table: name of the file with the same points.
    """
    script = render("map.js")
    tiles = _Tiles([point.thumbnail for point in points.items])
    return render(
        "map.html.j2",
        name=name,
        data=data,
        summary=points.summary(),
        dim=points.vectors.shape[1],
        method=method,
        plain=plain,
        centred=centred,
        notes=notes,
        bad=points.bad,
        command=shlex.join(("embedding-atlas", table, *_OF_ATLAS)),
        sheets=tiles.sheets(),
        script=Markup(script),
        script_hash=base64.b64encode(sha256(script.encode()).digest()).decode(),
        values=safe_json(_values(points, (plain, centred), neighbours, tiles)),
    )


def safe_json(values: object) -> Markup:
    """JSON that ends no element and begins none, whatever its texts are."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)  # ASCII, with escapes for all else
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _values(points: Points, layouts: Sequence[Layout], neighbours: Neighbours, tiles: _Tiles) -> dict[str, Any]:
    """All that the script reads: columns with an entry for each point."""
    items = points.items
    splits = list(dict.fromkeys(point.split for point in items))
    labels = sorted({point.label for point in items if point.label is not None})
    return {
        "modalities": MODALITIES,
        "splits": list(map(_cut, splits)),
        "labels": list(map(_cut, labels)),
        "modality": [MODALITIES.index(point.modality) for point in items],
        "split": _places([point.split for point in items], splits),
        "label": _places([point.label for point in items], labels),
        "id": [_cut(point.id) for point in items],
        "caption": [_cut(next(iter(point.captions))) if point.modality == TEXT else "" for point in items],
        "partners": [list(point.partners)[:_MOST_PARTNERS] for point in items],
        "num_partners": [len(point.partners) for point in items],
        "neighbours": neighbours.ids.tolist(),
        "distances": [[round(distance, 4) for distance in row] for row in neighbours.distances.tolist()],
        "layouts": [[[round(number, 5) for number in column] for column in layout.xy.T.tolist()] for layout in layouts],
        "tile": tiles.places,
        "tile_size": tiles.sizes,
        "tile_px": tiles.side_px,
        "sheet_columns": _SHEET_COLUMNS,
        "sheet_tiles": _SHEET_TILES,
    }


def _places(values: Sequence[str | None], known: Sequence[str]) -> list[int]:
    """Index of each value among the known ones, -1 for none."""
    index = {value: place for place, value in enumerate(known)}
    return [-1 if value is None else index[value] for value in values]


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


class _Tiles:
    """Pictures of equal squares on a few sheets, the smaller the more there are, so that the page stays small.

    Args:
        files: the picture of each point, None where it has none.
    """

    def __init__(self, files: Sequence[bytes | None]) -> None:
        self._files = list(dict.fromkeys(file for file in files if file is not None))
        place = {file: number for number, file in enumerate(self._files)}
        self.places = [-1 if file is None else place[file] for file in files]
        low, high = _TILE_PX
        side = math.isqrt(_MOST_PICTURE_PIXELS // max(1, len(self._files)))
        self.side_px = min(high, max(low, side // low * low))
        self.sizes: list[tuple[int, int]] = []
        """Width and height of each picture within its square."""
        self._sheets = [
            self._sheet(self._files[start : start + _SHEET_TILES]) for start in range(0, len(self._files), _SHEET_TILES)
        ]

    def _sheet(self, files: Sequence[bytes]) -> Image.Image:
        side, columns = self.side_px, min(len(files), _SHEET_COLUMNS)
        sheet = Image.new("RGB", (columns * side, math.ceil(len(files) / _SHEET_COLUMNS) * side))
        for number, file in enumerate(files):
            with open_image(io.BytesIO(file)) as opened:
                picture = opened.convert("RGB")
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)
            row, column = divmod(number, _SHEET_COLUMNS)
            sheet.paste(picture, (column * side, row * side))
            self.sizes.append(picture.size)
        return sheet

    def sheets(self) -> list[str]:
        """Data URIs of the sheets, all of the best quality that keeps the page small."""
        for quality in _QUALITIES:
            encoded = [_jpeg(sheet, quality) for sheet in self._sheets]
            if sum(map(len, encoded)) <= _MOST_SHEET_BYTES:
                break
        return [f"data:image/jpeg;base64,{base64.b64encode(file).decode()}" for file in encoded]


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=quality, optimize=True)
    return buffer.getvalue()
