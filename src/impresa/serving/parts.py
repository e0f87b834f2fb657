"""Parts of inputs, as the forms of requests hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from impresa.data.text import is_unicode
from impresa.serving.faults import ApiError, bad
from impresa.serving.settings import Limits

Kind = Literal["text", "tokens", "image", "audio"]


@dataclass(frozen=True)
class Part:
    """A text, the ids of its tokens, a picture or a sound."""

    kind: Kind
    value: Any
    """The text, the ids, or where the file is: a data URL, an address, or base64."""
    where: str
    """The field in the request."""


Input = list[Part]
"""The parts that share one embedding."""


def text_part(text: Any, where: str) -> Part:
    """A text that is not empty."""
    if not isinstance(text, str):
        raise bad(f"{where}: must be a string", where)
    if not text:
        raise bad(f"{where}: is an empty string; leave it out", where)
    if not is_unicode(text):
        raise bad(f"{where}: holds half of a character (a lone surrogate)", where)
    return Part("text", text, where)


def tokens_part(ids: Any, where: str) -> Part:
    """Token ids of the run's own tokenizer."""
    if not isinstance(ids, list) or not ids or not all(type(number) is int and number >= 0 for number in ids):
        raise bad(f"{where}: must be a list of token ids, at least one", where)
    return Part("tokens", ids, where)


def media_part(kind: Literal["image", "audio"], value: Any, where: str) -> Part:
    """A picture or a sound."""
    if not isinstance(value, str) or not value:
        raise bad(f"{where}: must be a data URL such as data:{kind}/...;base64,...", where)
    return Part(kind, value, where)


def content_parts(content: Any, where: str, *, may_be_empty: bool = False) -> Input:
    """The parts of a message's content, a string or a list of typed objects; empty texts are refused, unless they are
    left out."""
    if isinstance(content, str):
        return [] if may_be_empty and not content else [text_part(content, where)]
    if not isinstance(content, list) or not content:
        raise bad(f"{where}: must be a string or a list of parts, at least one", where)
    kept = [(number, part) for number, part in enumerate(content) if not (may_be_empty and part == _EMPTY)]
    return [_typed_part(part, f"{where}[{number}]") for number, part in kept]


_EMPTY = {"type": "text", "text": ""}


def _typed_part(part: Any, where: str) -> Part:
    if not isinstance(part, Mapping):
        raise bad(f"{where}: must be an object with a type", where)
    kind = part.get("type")
    match kind:
        case "text":
            return text_part(part.get("text"), f"{where}.text")
        case "image_url" | "audio_url":
            inner = part.get(kind)
            value = inner.get("url") if isinstance(inner, Mapping) else inner
            return media_part("image" if kind == "image_url" else "audio", value, f"{where}.{kind}")
        case "image_base64" | "audio_base64":
            return media_part("image" if kind == "image_base64" else "audio", part.get(kind), f"{where}.{kind}")
        case "input_audio":
            return _input_audio(part.get("input_audio"), f"{where}.input_audio")
    known = "text, image_url, image_base64, input_audio, audio_url or audio_base64"
    raise bad(f"{where}.type: must be {known}", f"{where}.type")


def _input_audio(inner: Any, where: str) -> Part:
    if not isinstance(inner, Mapping):
        raise bad(f"{where}: must be an object with data and format", where)
    if (form := inner.get("format")) not in (None, "wav", "mp3", "flac", "ogg"):
        raise bad(f"{where}.format: {form!r:.40} is not known; send wav, mp3, flac or ogg", f"{where}.format")
    return media_part("audio", inner.get("data"), f"{where}.data")


def check_amount(inputs: list[Input], limits: Limits) -> None:
    """Refuse more than a request may hold; no input at all too."""
    parts = [part for each in inputs for part in each]
    if not inputs:
        raise bad("there is no input", "input")
    if len(parts) > limits.items:
        raise bad(f"{len(parts)} inputs are more than {limits.items}; send fewer at a time", "input")
    if sum(part.kind in ("image", "audio") for part in parts) > limits.media:
        raise bad(f"more than {limits.media} pictures and sounds; send fewer at a time", "input")
    if sum(len(part.value) for part in parts if part.kind == "text") > limits.characters:
        raise bad(f"the texts have more than {limits.characters} characters; send fewer at a time", "input")
    check_tokens(sum(len(part.value) for part in parts if part.kind == "tokens"), limits)


def check_tokens(number: int, limits: Limits) -> None:
    """Refuse more tokens than a request may hold."""
    if number > limits.tokens:
        message = f"the texts have more than {limits.tokens} tokens; send fewer at a time"
        raise ApiError(400, message, "input", "max_tokens_per_request")
