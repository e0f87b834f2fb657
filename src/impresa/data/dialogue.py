"""Questions about an image and their answers, as plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

CAPTION = "caption"
"""The kind of a dialogue that asks for a caption."""
CAPTION_PROMPTS = (
    "describe the image.",
    "what does the image show?",
    "write a caption for this image.",
    "what can be seen here?",
)
"""Questions to which a caption is the answer; the first one is asked in use."""


@dataclass(frozen=True)
class Turn:
    """One question and its answer; neither is empty, nor has white space around it."""

    question: str
    answer: str


@dataclass(frozen=True)
class Dialogue:
    """A conversation about one image, nearly always of one turn; what was said before is known in later turns."""

    turns: tuple[Turn, ...]
    """At least one."""
    kind: str | None = None
    """Type of the question, for accuracy by type; None where the data name none."""


def ask(question: str, answer: str, kind: str | None = None) -> Dialogue:
    """A dialogue of a single turn."""
    return Dialogue((Turn(question, answer),), kind)


def dialogues_of_captions(captions: Sequence[str]) -> tuple[Dialogue, ...]:
    """Each caption as the answer to one of `CAPTION_PROMPTS`; the same caption always gets the same prompt."""
    return tuple(ask(_prompt_for(caption), caption, CAPTION) for caption in captions)


def texts_of(dialogues: Iterable[Dialogue]) -> Iterable[str]:
    """All questions and answers, for a tokenizer that is trained on them."""
    return (text for dialogue in dialogues for turn in dialogue.turns for text in (turn.question, turn.answer))


def _prompt_for(caption: str) -> str:
    number = blake2b(caption.encode(), digest_size=1).digest()[0]
    return CAPTION_PROMPTS[number % len(CAPTION_PROMPTS)]
