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
        return self._read(ids)[1]

    def answer(self, ids: Sequence[int], prompt: Prompt | None = None) -> Answer:
        """The answer that these tokens are, up to its end."""
        text, has_ended = self._read(ids)
        return Answer(text, "stop" if has_ended else "length", prompt)

    def pieces(self, tokens: Iterable[int], prompt: Prompt | None = None) -> Generator[str, None, Answer]:
        """The answer in pieces, as soon as they are certain; returns the whole.

        Held back are half characters, spaces at the end, and what may become one of `stops`.
        """
        ids: list[int] = []
        given = ""
        for token in tokens:
            ids.append(token)
            text, has_ended = self._read(ids)
            if has_ended:
                break
            text = text[: len(text) - self._num_held(text)].rstrip()
            if text.startswith(given) and text != given and not text.endswith(_REPLACEMENT):
                yield text[len(given) :]
                given = text
        answer = self.answer(ids, prompt)
        if rest := answer[len(given) :]:
            yield rest
        return answer

    def _read(self, ids: Sequence[int]) -> tuple[str, bool]:
        """The text up to its end, and whether it has one."""
        own = list(takewhile(lambda token: token not in self.chat.end_ids, ids))
        text = self.chat.decode(own).lstrip()
        starts = [start for stop in self.stops if (start := text.find(stop)) >= 0]
        return text[: min(starts, default=len(text))].strip(), bool(starts) or len(own) < len(ids)

    def _num_held(self, text: str) -> int:
        lengths = (length for stop in self.stops for length in range(1, len(stop)) if text.endswith(stop[:length]))
        return max(lengths, default=0)
