"""Questions about an image and their answers, as plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

CAPTION = "caption"
"""The kind of a dialogue whose answer is a caption."""
CAPTION_PROMPTS = (
    "describe the image.",
    "what does the image show?",
    "write a caption for this image.",
    "what can be seen here?",
)
"""Requests for a caption; `impresa caption` uses the first one."""


@dataclass(frozen=True)
class Turn:
    """One question and its answer; neither is empty, nor has white space around it."""

    question: str
    answer: str


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


def dialogues_of_captions(captions: Sequence[str]) -> tuple[Dialogue, ...]:
    """Each caption as the answer to one of `CAPTION_PROMPTS`; the same caption always gets the same prompt."""
    numbers = [blake2b(caption.encode(), digest_size=1).digest()[0] % len(CAPTION_PROMPTS) for caption in captions]
    return tuple(ask(CAPTION_PROMPTS[i], caption, CAPTION) for i, caption in zip(numbers, captions, strict=True))


def texts_of(dialogues: Iterable[Dialogue]) -> Iterable[str]:
    """All questions and answers, for a tokenizer that is trained on them."""
    return (text for dialogue in dialogues for turn in dialogue.turns for text in (turn.question, turn.answer))
