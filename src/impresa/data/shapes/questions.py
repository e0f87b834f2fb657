"""Questions about scenes, of five types, and their answers: all true, none with two answers.

Over many scenes each type is asked equally often, and each answer of a type is equally frequent: for every wording,
not only on the whole. So neither the most frequent answer nor the question's words help; only the picture does. That
holds in the test split as well, whose pairs of colour and shape are asked about in no other split.

- count: how many shapes there are, one to three.
- colour: of the shape at a place. Never of a kind of shape: a shape of an unseen pair would have no colour to learn.
- existence: whether there is, for example, a red circle. What is not there could have been: it is a pair of the split.
- relation: which of two opposite sides one shape lies on as seen from another, only where it does without doubt.
- comparison: whether one shape is larger or smaller than another, only where they are not the same size.
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
"""The two sides that a question offers, and the one that is right, for each relation that holds."""
_ONE = 1 << 32


def ask_about(scene: Scene, split: Split, draws: Draws) -> tuple[Dialogue, ...]:
    """One to three questions about the scene, two or three nearly always, each of another type.

    Args:
        scene: a scene of `draw_scene`.
        split: its split; the pairs that existence is asked about are those of the split.
        draws: choose the types, what is asked about and the wording.
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
            one, other = draws.choice([pair for pair in permutations(scene.objects, 2) if _differ_in_size(*pair)])
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
    """True if the words for its place can mean no other object: what is at the top left is at the top as well."""
    others = [item for item in scene.objects if item is not thing]
    match thing.place:
        case "top" | "bottom":
            return all(item.row != thing.row for item in others)
        case "left" | "right":
            return all(item.column != thing.column for item in others)
        case _:
            return True


def _differ_in_size(one: SceneObject, other: SceneObject) -> bool:
    return one.size != other.size


def _name(thing: SceneObject) -> str:
    """The words for an object; no other of its scene has the same colour and shape."""
    return f"{thing.colour} {thing.shape}"


def _choose_kinds(scene: Scene, draws: Draws) -> Iterator[Kind]:
    """Each type with its probability, by systematic sampling.

    The probabilities are laid end to end on a line with marks at a drawn distance; a type is chosen when its piece has
    a mark. So their number varies by no more than one, and is never zero because the probabilities add up to more.
    """
    end = draws.below(_ONE)
    for kind, length in zip(KINDS, _probabilities(len(scene.objects), _has_two_sizes(scene)), strict=True):
        start, end = end, end + length
        if end // _ONE > start // _ONE:
            yield kind


def _has_two_sizes(scene: Scene) -> bool:
    return len({item.size for item in scene.objects}) > 1


@lru_cache
def _probabilities(num_objects: int, has_two_sizes: bool) -> tuple[int, ...]:
    """How probable each of `KINDS` is for such a scene, in units of 2**-32.

    Counting sets the pace: each scene of the rarest number is asked, the others as much less as there are more of them.
    The other types are asked as often on the whole, of the scenes that allow them.
    """
    share = {number: Fraction(COUNTS.count(number), len(COUNTS)) for number in set(COUNTS)}
    rarest = min(share.values())
    pace = rarest * len(share)
    several = 1 - share[1]
    # Sizes are drawn independently of each other, large as often as small.
    different = sum((part * (1 - Fraction(2, 2**number)) for number, part in share.items()), Fraction())
    probabilities: dict[Kind, Fraction] = {
        "count": rarest / share[num_objects],
        "colour": Fraction(1) if num_objects == 1 else (pace - share[1]) / several,
        "existence": Fraction(1) if num_objects == 1 else (pace - share[1]) / several,
        "relation": pace / several if num_objects > 1 else Fraction(),
        "comparison": pace / different if has_two_sizes else Fraction(),
    }
    return tuple(int(probabilities[kind] * _ONE) for kind in KINDS)
