"""Captions of scenes, in several wordings; each is true and names every object once."""

from __future__ import annotations

from impresa.data.shapes.draws import Draws
from impresa.data.shapes.scenes import PLACES, Scene, relations

_PREPOSITIONS = {"left": "on", "center": "in", "right": "on"}
WHERE = {place: f"{_PREPOSITIONS.get(place, 'at')} the {place}" for place in PLACES}
"""The phrase for each place."""

_TEMPLATES = {
    1: ("{a} {at_a}", "{at_a} {a}", "there is {a} {at_a}", "a picture of {a} {at_a}"),
    2: (
        "{a} {relation} {b}",
        "{a} {relation} {b} {at_b}",
        "{a} {at_a} and {b} {at_b}",
        "{at_a} {a}, {at_b} {b}",
        "there is {a} {at_a} and {b} {at_b}",
    ),
    3: (
        "{a} {relation} {b}, and {c} {at_c}",
        "{c} {at_c}, and {a} {relation} {b}",
        "{a} {at_a}, {b} {at_b} and {c} {at_c}",
        "{at_a} {a}, {at_b} {b}, {at_c} {c}",
        "there is {a}, {b} {at_b} and {c} {at_c}",
    ),
}


def describe(scene: Scene, draws: Draws) -> str:
    """A caption of the scene: `draws` choose the wording, the order of the objects and the relation."""
    objects = draws.sample(scene.objects, len(scene.objects))
    words = {}
    for name, item in zip("abc", objects, strict=False):
        words[name] = f"a {item.size} {item.colour} {item.shape}"
        words[f"at_{name}"] = WHERE[item.place]
    if len(objects) > 1:
        words["relation"] = draws.choice(relations(objects[0], objects[1]))
    return draws.choice(_TEMPLATES[len(objects)]).format_map(words)
