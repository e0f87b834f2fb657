"""An image as an alignment sees it: attention of its image tower, and the patches that a text likes."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from impresa.errors import ConfigError
from impresa.inside.drawing import marked, seen_square
from impresa.inside.explanation import Explanation, Maps, Method, Section, Tile
from impresa.inside.occlusion import occlusion
from impresa.inside.towers import SeenByTower
from impresa.layers.recording import recording_attention

if TYPE_CHECKING:
    from impresa.tasks.alignment.embedder import EmbeddingModel

_ROWS = 8
"""Of the squares that are covered, where the patches are not known."""


@torch.no_grad()
def explain_image(
    model: EmbeddingModel, picture: Image.Image, text: str | None, method: Method, max_rows: int
) -> Explanation:
    """Explain an RGB image; see `UsableModel.explain`. Without a text the map of what it likes is left out."""
    transform, tower = model.preprocessing.image, model.model.vision_encoder
    pixels = transform(picture).to(model.device)
    with recording_attention(tower) as recorded:
        tower(pixels[None], return_tokens=True)
    num_rows, notes = _ROWS, []
    sections: list[Section] = []
    try:
        seen = SeenByTower(tower, recorded, method)
        sections, num_rows = seen.sections(), isqrt(len(seen.patches))
    except ConfigError as error:
        if text is None:
            raise
        notes.append(str(error))
    if text is not None:
        sections.insert(0, _liked(model, pixels, text, min(num_rows, max_rows)))
    square = seen_square(picture, transform)
    return Explanation(square, marked(picture, transform), tuple(sections), f"“{text}”" if text else "", tuple(notes))


def _liked(model: EmbeddingModel, pixels: Tensor, text: str, num_rows: int) -> Maps:
    embedding = model.encode_text(text).to(model.device)

    def similarity(images: Tensor) -> Tensor:
        return F.normalize(model.model.embed_image(images).float(), dim=-1) @ embedding

    falls = occlusion(similarity, pixels, num_rows)
    cosine, most = float(similarity(pixels[None])), float(falls.max())
    note = f"The fall of their cosine, {cosine:.2f}, when a square is covered (occlusion)."
    return Maps("Text", note, (Tile(f"peak {max(most, 0.0):.3f}", falls.clamp(min=0)),))
