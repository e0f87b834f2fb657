"""The form in which answers are asked for, `/v1/chat/completions`, and the conversation in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from impresa.config.decoder import GenerationConfig
from impresa.data.dialogue import Turn
from impresa.serving.faults import bad
from impresa.serving.parts import Part, content_parts

_COLDEST = 0.001
"""Temperatures below it are zero."""
_LEAST_TOP_P = 1e-6
_SEEDS = 1_000_000_000
_MOST_STOPS, _LONGEST_STOP = 4, 1000
_SYSTEM = ("system", "developer")
_ONE, _TEXT = "there is one answer to a request", "this model writes text alone"
_NOT_HERE: dict[str, tuple[str, tuple[Any, ...]]] = {
    "n": (_ONE, (1,)),
    "best_of": (_ONE, (1,)),
    "frequency_penalty": ("there are no penalties here", (0,)),
    "presence_penalty": ("there are no penalties here", (0,)),
    "repetition_penalty": ("the run's own decoder.generation.repetition_penalty holds", (1,)),
    "top_k": ("the run's own decoder.generation.top_k holds", (0, -1)),
    "min_p": ("tokens are chosen by temperature and top_p alone", (0,)),
    "logprobs": ("answers come without probabilities", (False,)),
    "top_logprobs": ("answers come without probabilities", (0,)),
    "logit_bias": ("tokens have no bias here", ({},)),
    "tools": ("this model calls no tools", ([],)),
    "functions": ("this model calls no functions", ([],)),
    "modalities": (_TEXT, (["text"],)),
    "response_format": (_TEXT, ({"type": "text"},)),
}
"""Fields that are refused because they would have no effect: the reason, and values that ask for nothing."""


class _StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    include_usage: bool | None = None


class ChatForm(BaseModel):
    """A request; fields that are not here are left alone."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())
    model: str | None = None
    messages: list[Any]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    stop: Any = None
    """A text or a list of texts."""
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_here(cls, body: Any) -> Any:
        for name, (reason, harmless) in _NOT_HERE.items():
            if body.get(name) is not None and body[name] not in harmless:
                raise bad(f"{name}: {reason}; leave it out", name)
        return body

    def check(self) -> None:
        """Refuse what contradicts itself. Raises `ApiError`."""
        if self.stream_options is not None and not self.stream:
            raise bad("stream_options: are for stream=true alone; leave them out", "stream_options")

    @property
    def includes_usage(self) -> bool:
        """A stream ends with the numbers of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def stops(self, defaults: list[str]) -> list[str]:
        """Texts that end the answer."""
        if self.stop is None:
            return defaults
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        are_texts = isinstance(stops, list) and all(isinstance(stop, str) for stop in stops)
        if not are_texts or len(stops) > _MOST_STOPS or not all(0 < len(stop) <= _LONGEST_STOP for stop in stops):
            fix = f"give up to {_MOST_STOPS} texts of 1 to {_LONGEST_STOP} characters"
            raise bad(f"stop: {fix}", "stop")
        return stops

    def num_new(self, default: int, most: int) -> int:
        """Tokens of the answer at most."""
        return min(self.max_completion_tokens or self.max_tokens or default, most)

    def settings(self, defaults: GenerationConfig) -> GenerationConfig:
        """How tokens are chosen: the run's own settings where the request has none, and never by beams.

        What has no effect at temperature zero is set aside, so that requests can be batched which differ in it alone.
        """
        temperature = defaults.temperature if self.temperature is None else self.temperature
        if temperature < _COLDEST:
            return replace(defaults, temperature=0.0, top_p=1.0, top_k=0, seed=None, num_beams=1, stop=())
        top_p = defaults.top_p if self.top_p is None else max(self.top_p, _LEAST_TOP_P)
        seed = defaults.seed if self.seed is None else self.seed % _SEEDS
        return replace(defaults, temperature=float(temperature), top_p=float(top_p), seed=seed, num_beams=1, stop=())


@dataclass
class Conversation:
    """The turns of a conversation, and its pictures and sounds."""

    question: str = ""
    turns: list[Turn] = field(default_factory=list)
    """Before the question, oldest first."""
    system: str | None = None
    images: list[Part] = field(default_factory=list)
    """Of all messages, in order."""
    sounds: list[Part] = field(default_factory=list)


def conversation_of(messages: list[Any]) -> Conversation:
    """The conversation in the messages of a request; messages of one side in a row are one.

    Raises:
        ApiError: a message is none, or they are not in turn.
    """
    found = Conversation()
    sides: list[tuple[str, list[str]]] = []
    system: list[str] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ("user", "assistant", *_SYSTEM):
            raise bad(f"{where}.role: must be system, developer, user or assistant", f"{where}.role")
        parts = content_parts(message.get("content"), f"{where}.content", may_be_empty=True)
        texts = [part.value for part in parts if part.kind == "text"]
        if role != "user" and len(texts) < len(parts):
            raise bad(f"{where}.content: only users send pictures and sounds", f"{where}.content")
        found.images += [part for part in parts if part.kind == "image"]
        found.sounds += [part for part in parts if part.kind == "audio"]
        if role in _SYSTEM:
            if sides:
                raise bad(f"{where}.role: {role} messages come first", f"{where}.role")
            system += texts
        elif sides and sides[-1][0] == role:
            sides[-1][1].extend(texts)
        else:
            sides.append((str(role), texts))
    said = [(role, "\n".join(texts).strip()) for role, texts in sides]
    if not said or said[0][0] != "user" or said[-1][0] != "user":
        raise bad("messages: the first and the last must be the user's", "messages")
    if not all(text for role, text in said if role == "user"):  # an answer may be empty: models give such
        raise bad("messages: a picture or a sound comes with words; add them to the user's message", "messages")
    texts = [text for _, text in said]
    found.turns = [Turn(*pair) for pair in zip(texts[:-1:2], texts[1::2], strict=True)]
    found.question, found.system = texts[-1], "\n".join(system).strip() or None
    return found
