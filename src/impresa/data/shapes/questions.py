"""Questions about scenes, of five types, each with exactly one answer.

Over many scenes each type is asked equally often, and each answer of a type is equally frequent, for every wording. So
neither the most frequent answer nor the words of the question help; only the picture does. The same holds in the test
split, whose pairs of colour and shape are asked about in no other split.

- count: the number of shapes, one to three.
- colour: of the shape at a place. Never of a kind of shape: the colour of a shape of an unseen pair cannot be learned.
- existence of, for example, a red circle. Absent objects could have been present: they are pairs of the split.
- relation: the one of two opposite sides on which one shape lies as seen from another, only if it is unambiguous.
- comparison of the sizes of two shapes, only if they differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import permutations
from typing import Literal, get_args

from impresa.data.dialogue import Dialogue, ask
from impresa.data.shapes.captions import WHERE
from impresa.data.shapes.draws import Draws
from impresa.data.shapes.scenes import COUNTS, HELD_OUT_PAIRS, TRAINED_PAIRS, Scene, SceneObject, Split, relations

Kind = Literal["count", "colour", "existence", "relation", "comparison"]

KINDS: tuple[Kind, ...] = get_args(Kind)
NUMBERS = ("zero", "one", "two", "three")

_WORDINGS: dict[Kind, tuple[str, ...]] = {
    "count": ("how many shapes are there?", "how many shapes can you see?"),
    "colour": ("what colour is the shape {place}?", "which colour does the shape {place} have?"),
    "existence": ("is there {a} {colour} {shape}?", "can you see {a} {colour} {shape}?"),
}
_CHOICES = {
    "left of": ("left or right of", "left"),
    "right of": ("left or right of", "right"),
    "above": ("above or below", "above"),
    "below": ("above or below", "below"),
}
"""The two sides that a question offers, and the right one, for each relation."""
_ONE = 1 << 32


def ask_about(scene: Scene, split: Split, draws: Draws) -> tuple[Dialogue, ...]:
    """One to three questions about the scene, two or three nearly always, each of another type.

    Args:
        scene: a scene of `draw_scene`.
        split: its split, whose pairs are those of questions about existence.
        draws: choose the types, the objects and the wording.
    """
    return tuple(_ask(kind, scene, split, draws) for kind in _choose_kinds(scene, draws))


def _ask(kind: Kind, scene: Scene, split: Split, draws: Draws) -> Dialogue:
    match kind:
        case "count":
            question, answer = draws.choice(_WORDINGS[kind]), NUMBERS[len(scene.objects)]
        case "colour":
            thing = draws.choice([item for item in scene.objects if _is_alone_at_its_place(item, scene)])
            question, answer = draws.choice(_WORDINGS[kind]).format(place=WHERE[thing.place]), thing.colour
        case "existence":
            question, answer = _existence(scene, split, draws)
        case "relation":
            one, other = draws.sample(scene.objects, 2)
            sides, answer = _CHOICES[draws.choice(relations(one, other))]
            question = f"is the {_name(one)} {sides} the {_name(other)}?"
        case "comparison":
            pairs = permutations(scene.objects, 2)
            one, other = draws.choice([(a, b) for a, b in pairs if a.size != b.size])
            question = f"is the {_name(one)} larger or smaller than the {_name(other)}?"
            answer = "larger" if one.size == "large" else "smaller"
    return ask(question, answer, kind)


def _existence(scene: Scene, split: Split, draws: Draws) -> tuple[str, str]:
    present = [item.pair for item in scene.objects]
    absent = [pair for pair in (HELD_OUT_PAIRS if split == "test" else TRAINED_PAIRS) if pair not in present]
    answer = draws.choice(("yes", "no"))
    colour, shape = draws.choice(present if answer == "yes" else absent)
    article = "an" if colour == "orange" else "a"
    return draws.choice(_WORDINGS["existence"]).format(a=article, colour=colour, shape=shape), answer


def _is_alone_at_its_place(thing: SceneObject, scene: Scene) -> bool:
    """True if the words for its place fit no other object: one at the top left is at the top as well."""
    others = [item for item in scene.objects if item is not thing]
    match thing.place:
        case "top" | "bottom":
            return all(item.row != thing.row for item in others)
        case "left" | "right":
            return all(item.column != thing.column for item in others)
        case _:
            return True


def _name(thing: SceneObject) -> str:
    """The words for an object; they are unique in its scene."""
    return f"{thing.colour} {thing.shape}"


def _choose_kinds(scene: Scene, draws: Draws) -> Iterator[Kind]:
    """Each type with its probability, by systematic sampling.

    The probabilities are laid end to end on a line, from a drawn start; a type is chosen if its piece contains a whole
    number. So the number of types varies by at most one, and is never zero because the probabilities add up to more.
    """
    end = draws.below(_ONE)
    has_two_sizes = len({item.size for item in scene.objects}) > 1
    for kind, length in zip(KINDS, _probabilities(len(scene.objects), has_two_sizes), strict=True):
        start, end = end, end + length
        if end // _ONE > start // _ONE:
            yield kind


@lru_cache
def _probabilities(num_objects: int, has_two_sizes: bool) -> tuple[int, ...]:
    """Probability of each of `KINDS` for such a scene, in units of 2**-32.

    Counting decides the rate: every scene with the rarest number of objects is asked, of other scenes the same number.
    The other types are asked equally often in total, of the scenes that allow them.
    """
    share = {number: Fraction(COUNTS.count(number), len(COUNTS)) for number in set(COUNTS)}
    rarest = min(share.values())
    pace = rarest * len(share)
    several = 1 - share[1]
    # Sizes are independent of each other, large as probable as small.
    different = sum((part * (1 - Fraction(2, 2**number)) for number, part in share.items()), Fraction())
    of_any = Fraction(1) if num_objects == 1 else (pace - share[1]) / several
    probabilities: dict[Kind, Fraction] = {
        "count": rarest / share[num_objects],
        "colour": of_any,
        "existence": of_any,
        "relation": pace / several if num_objects > 1 else Fraction(),
        "comparison": pace / different if has_two_sizes else Fraction(),
    }
    return tuple(int(probabilities[kind] * _ONE) for kind in KINDS)
