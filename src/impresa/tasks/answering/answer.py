"""From the tokens of an answer to its text, all at once or piece by piece."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from impresa.data.chat import ChatFormat, Prompt

FinishReason = Literal["stop", "length"]
_REPLACEMENT = "\ufffd"


class Answer(str):
    """The text of an answer, which also knows how it came about."""

    finish_reason: FinishReason
    """`stop`: it came to its end; `length`: `max_new_tokens` cut it."""
    question_cut: bool
    """The start of the question did not fit into `decoder.max_len`."""
    num_forgotten: int
    """Turns of the dialogue that did not fit, the oldest ones."""

    def __new__(cls, text: str = "", finish_reason: FinishReason = "stop", prompt: Prompt | None = None) -> Answer:
        answer = super().__new__(cls, text)
        answer.finish_reason = finish_reason
        answer.question_cut = prompt is not None and prompt.num_cut > 0
        answer.num_forgotten = 0 if prompt is None else prompt.num_forgotten
        return answer


@dataclass(frozen=True)
class Reader:
    """Reads generated tokens."""

    chat: ChatFormat
    stops: Sequence[str] = ()
    """Texts that end an answer."""

    def is_stop(self, ids: Sequence[int]) -> bool:
        """True if the text of these tokens has come to one of `stops`."""
        return self.read(ids)[1]

    def answer(self, ids: Sequence[int], prompt: Prompt | None = None) -> Answer:
        """The answer that these tokens are, up to its end."""
        text, has_ended = self.read(ids)
        return Answer(text, "stop" if has_ended else "length", prompt)

    def pieces(self, tokens: Iterable[int], prompt: Prompt | None = None) -> Generator[str, None, Answer]:
        """The answer in pieces, as soon as they are certain; returns the whole."""
        growing = Growing(self, prompt)
        for token in tokens:
            if piece := growing.add(token):
                yield piece
            if growing.has_ended:
                break
        rest, answer = growing.finish()
        if rest:
            yield rest
        return answer

    def read(self, ids: Sequence[int]) -> tuple[str, bool]:
        """The text up to its end, and whether it has one."""
        own = list(takewhile(lambda token: token not in self.chat.end_ids, ids))
        text = self.chat.decode(own).lstrip()
        starts = [start for stop in self.stops if (start := text.find(stop)) >= 0]
        return text[: min(starts, default=len(text))].strip(), bool(starts) or len(own) < len(ids)

    def num_held(self, text: str) -> int:
        """Characters at the end of a text that may become the start of one of `stops`."""
        lengths = (length for stop in self.stops for length in range(1, len(stop)) if text.endswith(stop[:length]))
        return max(lengths, default=0)


class Growing:
    """An answer that is being written.

    Held back are half characters, spaces at the end, and what may become one of the reader's `stops`.
    """

    def __init__(self, reader: Reader, prompt: Prompt | None = None) -> None:
        self._reader, self._prompt = reader, prompt
        self._ids: list[int] = []
        self._given = ""
        self.has_ended = False
        """The answer has come to its end; further tokens do not belong to it."""

    @property
    def num_tokens(self) -> int:
        """Tokens so far, that of the end included."""
        return len(self._ids)

    def add(self, token: int) -> str:
        """The text that has become certain with a token; it may be empty."""
        self._ids.append(token)
        text, self.has_ended = self._reader.read(self._ids)
        if self.has_ended:
            return ""
        text = text[: len(text) - self._reader.num_held(text)].rstrip()
        if not text.startswith(self._given) or text.endswith(_REPLACEMENT):
            return ""
        return self._give(text)

    def finish(self) -> tuple[str, Answer]:
        """The rest of the answer, and the whole."""
        answer = self._reader.answer(self._ids, self._prompt)
        return self._give(answer), answer

    def _give(self, text: str) -> str:
        piece = text[len(self._given) :]
        self._given += piece
        return piece
