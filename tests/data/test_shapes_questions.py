"""Questions about scenes: true, with one answer, balanced, and silent about pairs that are kept for the test."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from functools import cache
from typing import get_args

import pytest

from impresa.config.dataset import ShapesConfig
from impresa.data.dialogue import Dialogue
from impresa.data.shapes.captions import WHERE
from impresa.data.shapes.draws import Draws
from impresa.data.shapes.questions import KINDS, NUMBERS, Kind, ask_about
from impresa.data.shapes.scenes import COLOURS, HELD_OUT_PAIRS, SHAPES, TRAINED_PAIRS, Scene, SceneObject, draw_scene
from impresa.data.sources import Reading
from impresa.data.sources.shapes import ShapesSource

NUM_SCENES = 3000
SPLITS = ("train", "val", "test")
PLACE_OF = {words: place for place, words in WHERE.items()}
THING = rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
ANSWERS = {
    "count": NUMBERS[1:],
    "colour": COLOURS,
    "existence": ("yes", "no"),
    "relation": ("left", "right", "above", "below"),
    "comparison": ("larger", "smaller"),
}


@cache
def asked(split: str) -> list[tuple[Scene, Dialogue]]:
    """Each question of a split with its scene."""
    found = []
    for index in range(NUM_SCENES):
        scene = draw_scene(3, split, index)
        found += [(scene, dialogue) for dialogue in ask_about(scene, split, Draws("questions", 3, split, index))]
    return found


def of_kind(split: str, kind: Kind) -> list[tuple[Scene, str, str]]:
    """(scene, question, answer) of one type."""
    rows = [(scene, dialogue.turns[0]) for scene, dialogue in asked(split) if dialogue.kind == kind]
    return [(scene, turn.question, turn.answer) for scene, turn in rows]


def deviation(count: int, total: int, share: float) -> float:
    """How far a count is from its expectation, in standard deviations."""
    return abs(count - share * total) / (share * (1 - share) * total) ** 0.5


def thing(scene: Scene, pair: tuple[str, str]) -> SceneObject:
    (found,) = [item for item in scene.objects if item.pair == pair]
    return found


def test_the_types_are_five() -> None:
    assert get_args(Kind) == KINDS == ("count", "colour", "existence", "relation", "comparison")
    assert {dialogue.kind for _, dialogue in asked("train")} == set(KINDS)


@pytest.mark.parametrize("split", SPLITS)
def test_types_have_equal_shares_and_scenes_few_lonely_objects(split: str) -> None:
    counts = Counter(dialogue.kind for _, dialogue in asked(split))
    total = sum(counts.values())
    assert total > 2 * NUM_SCENES
    for kind in KINDS:
        assert deviation(counts[kind], total, 1 / 5) < 4
    lonely = sum(len(draw_scene(3, split, index).objects) == 1 for index in range(NUM_SCENES))
    assert lonely / NUM_SCENES < 0.2
    assert sum(len(scene.objects) == 1 for scene, _ in asked(split)) / total < 0.22


@pytest.mark.parametrize("split", SPLITS)
def test_every_scene_is_asked_one_to_three_questions_of_different_types(split: str) -> None:
    numbers = Counter()
    for index in range(1000):
        scene = draw_scene(3, split, index)
        kinds = [dialogue.kind for dialogue in ask_about(scene, split, Draws(split, index))]
        assert len(set(kinds)) == len(kinds)
        numbers[len(kinds)] += 1
    assert set(numbers) == {1, 2, 3}
    assert numbers[1] < 200


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_balanced_within_each_type(split: str, kind: Kind) -> None:
    answers = Counter(answer for _, _, answer in of_kind(split, kind))
    assert set(answers) == set(ANSWERS[kind])
    for answer in answers:
        assert deviation(answers[answer], answers.total(), 1 / len(answers)) < 4


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_word_of_a_question_gives_its_answer_away(split: str, kind: Kind) -> None:
    by_word: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for _, question, answer in of_kind(split, kind):
        for number, word in enumerate(question.rstrip("?").split()):
            by_word[word][answer] += 1
            by_word[f"{word} at {number}"][answer] += 1
    for word, answers in by_word.items():
        # "left" and "right" stand in one question, "above" and "below" in another: the words name the possible answers.
        possible = 2 if kind == "relation" and answers.keys() < set(ANSWERS[kind]) else len(ANSWERS[kind])
        if answers.total() > 60:
            for answer in answers:
                assert deviation(answers[answer], answers.total(), 1 / possible) < 4.5, (word, answers)


@pytest.mark.parametrize("split", SPLITS)
def test_counts_are_right(split: str) -> None:
    for scene, question, answer in of_kind(split, "count"):
        assert question.startswith("how many shapes ")
        assert len(scene.objects) == NUMBERS.index(answer)


@pytest.mark.parametrize("split", SPLITS)
def test_colours_are_asked_by_a_place_that_only_one_object_is_at(split: str) -> None:
    for scene, question, answer in of_kind(split, "colour"):
        words = re.fullmatch(r"wh\w+ colou?r (?:is|does) the shape (.+?)(?: have)?\?", question)[1]
        side = PLACE_OF[words]
        # What is at the top left is at the top, too; so whoever is asked for the top must find one object there.
        there = [item for item in scene.objects if set(side.split()) <= set(item.place.split())]
        assert [item.colour for item in there] == [answer]
        assert not any(shape in question for shape in SHAPES)


@pytest.mark.parametrize("split", SPLITS)
def test_existence_is_true_and_asks_about_pairs_of_its_split(split: str) -> None:
    pairs = set(HELD_OUT_PAIRS if split == "test" else TRAINED_PAIRS)
    found: dict[str, Counter[tuple[str, str]]] = {"yes": Counter(), "no": Counter()}
    for scene, question, answer in of_kind(split, "existence"):
        pair = re.fullmatch(rf"(?:is there|can you see) an? {THING}\?", question).groups()
        assert (pair in [item.pair for item in scene.objects]) == (answer == "yes")
        assert (" an " in question) == (pair[0] == "orange")
        found[answer][pair] += 1
    assert set(found["yes"]) | set(found["no"]) == pairs
    for pair in pairs:
        total = found["yes"][pair] + found["no"][pair]
        assert deviation(found["yes"][pair], total, 1 / 2) < 4


@pytest.mark.parametrize("split", SPLITS)
def test_relations_hold_without_doubt(split: str) -> None:
    for scene, question, answer in of_kind(split, "relation"):
        *one, sides, fourth, fifth = re.fullmatch(rf"is the {THING} (.+) the {THING}\?", question).groups()
        first, second = thing(scene, tuple(one)), thing(scene, (fourth, fifth))
        right, down = first.x - second.x, first.y - second.y
        assert sides in ("left or right of", "above or below")
        distance = right if sides == "left or right of" else down
        assert answer == (("left", "right") if sides == "left or right of" else ("above", "below"))[distance > 0]
        assert abs(distance) >= 200


@pytest.mark.parametrize("split", SPLITS)
def test_comparisons_are_of_different_sizes(split: str) -> None:
    for scene, question, answer in of_kind(split, "comparison"):
        *one, fourth, fifth = re.fullmatch(rf"is the {THING} larger or smaller than the {THING}\?", question).groups()
        first, second = thing(scene, tuple(one)), thing(scene, (fourth, fifth))
        assert answer == ("larger" if first.radius > second.radius else "smaller")
        assert abs(first.radius - second.radius) > 30


def test_training_and_validation_never_speak_of_held_out_pairs() -> None:
    held_out = [" ".join(pair) for pair in HELD_OUT_PAIRS]
    trained = [" ".join(pair) for pair in TRAINED_PAIRS]
    for split, unspoken in (("train", held_out), ("val", held_out), ("test", trained)):
        text = "\n".join(dialogue.turns[0].question for _, dialogue in asked(split))
        assert not [pair for pair in unspoken if pair in text]


def test_a_source_asks_when_it_is_told_to_and_the_same_every_time() -> None:
    config = ShapesConfig(num_train=6, num_val=2, num_test=2, seed=5)
    silent, asking = ShapesSource(config, "train", 16), ShapesSource(config, "train", 16, Reading(dialogues=True))
    longer = ShapesSource(ShapesConfig(num_train=9, seed=5), "train", 16, Reading(dialogues=True))
    assert list(silent.dialogues()) == []
    assert silent[0].dialogues == ()
    assert list(asking.dialogues()) == [dialogue for index in range(6) for dialogue in asking[index].dialogues]
    assert [longer[index].dialogues for index in range(6)] == [asking[index].dialogues for index in range(6)]
    assert asking[3].captions == silent[3].captions
    assert asking[3].dialogues != ShapesSource(ShapesConfig(seed=6), "train", 16, Reading(dialogues=True))[3].dialogues
