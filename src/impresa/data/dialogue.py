"""Questions about an image and their answers, as plain text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CAPTION = "caption"
"""The kind of a dialogue whose answer is a caption."""
CAPTION_PROMPTS = (
    "describe the image.",
    "what does the image show?",
    "write a caption for this image.",
    "what can be seen here?",
)
"""Requests for a caption; `impresa caption` uses the first one."""
_ASKS_FOR_CAPTION = re.compile(r"\b(?:caption|describe|description)", re.IGNORECASE)


@dataclass(frozen=True)
class Turn:
    """One question and its answer; neither is empty, nor has white space around it."""

    question: str
    answer: str
    """The right answer; of several the most frequent one."""
    references: tuple[str, ...] = ()
    """All right answers, as often as they were given, where the data have a list of them."""

    @property
    def right_answers(self) -> tuple[str, ...]:
        """All right answers, at least one."""
        return self.references or (self.answer,)


def with_references(question: str, references: Sequence[str]) -> Turn:
    """A turn with a list of right answers; at a tie the first of the most frequent ones is its answer."""
    return Turn(question, Counter(references).most_common(1)[0][0], tuple(references))


@dataclass(frozen=True)
class Dialogue:
    """A conversation about one image, nearly always of one turn; later turns depend on those before."""

    turns: tuple[Turn, ...]
    """At least one."""
    kind: str | None = None
    """Type of the question, for accuracy by type; None if the data do not name it."""
    num_dropped: int = field(default=0, compare=False)
    """Texts of the data that are left out: an answer before the first question, a question after the last answer."""


def ask(question: str, answer: str, kind: str | None = None) -> Dialogue:
    """A dialogue of a single turn."""
    return Dialogue((Turn(question, answer),), kind)


def with_one_answer(dialogue: Dialogue, generator: np.random.Generator) -> Dialogue:
    """The dialogue with one of the right answers to each question, drawn evenly: a frequent one more often."""

    def drawn(turn: Turn) -> Turn:
        answers = turn.references
        return Turn(turn.question, answers[generator.integers(len(answers))]) if answers else turn

    return replace(dialogue, turns=tuple(map(drawn, dialogue.turns)))


def dialogues_of_captions(captions: Sequence[str]) -> tuple[Dialogue, ...]:
    """Each caption as the answer to one of `CAPTION_PROMPTS`; the same caption always gets the same prompt."""
    numbers = [blake2b(caption.encode(), digest_size=1).digest()[0] % len(CAPTION_PROMPTS) for caption in captions]
    return tuple(ask(CAPTION_PROMPTS[i], caption, CAPTION) for i, caption in zip(numbers, captions, strict=True))


def asks_for_caption(question: str) -> bool:
    """True for a request to describe what is there, by its words."""
    return question in CAPTION_PROMPTS or _ASKS_FOR_CAPTION.search(question) is not None


def ask_for_captions(dialogues: Iterable[Dialogue]) -> bool:
    """True if some of these dialogues teach captions."""
    return any(
        asks_for_caption(text) for said in dialogues for text in (said.kind or "", *(t.question for t in said.turns))
    )


def texts_of(dialogues: Iterable[Dialogue]) -> Iterable[str]:
    """All questions and right answers, for a tokenizer that is trained on them."""
    return (text for dialogue in dialogues for turn in dialogue.turns for text in (turn.question, *turn.right_answers))
