"""Questions with answers about an image, read from the cells of a row in each of the common layouts.

A row is read as the first of these that it has:

1. `messages`: a list of user and assistant texts in turn, either strings or objects of `role` and `content`.
2. `conversations`, as LLaVA has it: a list of objects of `from` (human, gpt) and `value`.
3. `prompt` and `completion`, as TRL has them: texts, or lists of messages that follow each other.
4. A question and an answer, or lists of them of equal length, in the columns of the config. A question of the form
   `[USER] ... [ASSISTANT] ... [USER] ... [ASSISTANT]` is a dialogue whose last answer is in the answer's column, as in
   PixMo. In place of an answer a question may have a list of right ones, texts or objects with an `answer`, as VQAv2
   has them.
5. Captions, each the answer to a request for one.

An answer before the first question and a question after the last answer are left out and counted. A tag `<image>` is
removed: the image always comes before the text. System messages are left out: the language model's chat template has
its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence, Set
from decimal import Decimal
from typing import Any

import numpy as np

from impresa.config.dataset import DatasetConfig
from impresa.data.dialogue import Dialogue, Turn, dialogues_of_captions, with_references
from impresa.data.text import as_list, is_missing, is_unicode, plain, read_captions, read_label

MESSAGES = ("messages", "conversations")
"""Columns that hold whole dialogues."""
PROMPT, COMPLETION = "prompt", "completion"
"""Columns that hold the two parts of a dialogue."""

_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}
_TAG = re.compile(r"\[(USER|ASSISTANT)\]")
_IMAGE = "<image>"
_LARGEST_WHOLE = 2**53
"""A float above it may stand for other integers as well."""
_WHOLE_FLOAT = re.compile(r"-?\d{1,15}\.0", re.ASCII)
_SWITCHES = {"True": True, "False": False}


def dialogue_columns(config: DatasetConfig) -> tuple[str, ...]:
    """All columns that `read_dialogues` uses."""
    pairs = (PROMPT, COMPLETION, config.question_column, config.answer_column)
    return (*MESSAGES, *pairs, config.kind_column, config.caption_column)


def holds_dialogues(columns: Set[str], config: DatasetConfig) -> bool:
    """True for a table that has all columns of a layout of its own, so not for captions."""
    pair = {config.question_column, config.answer_column}
    return bool(columns & set(MESSAGES)) or {PROMPT, COMPLETION} <= columns or pair <= columns


def missing_columns(columns: Set[str], config: DatasetConfig) -> list[tuple[str, str]]:
    """Columns that a table of dialogues lacks, and the key that mends it; empty if it has all."""
    pair = {config.question_column, config.answer_column}
    if holds_dialogues(columns, config):
        return []
    for key in ("question", "answer"):
        if pair & columns and (column := getattr(config, f"{key}_column")) not in columns:
            return [(f"no column {column!r} for the {key}", f"dataset.{key}_column")]
    if config.caption_column in columns:
        return []
    return [(f"no column with questions and answers, nor {config.caption_column!r}", "dataset.question_column")]


def read_dialogues(cells: Mapping[str, Any], config: DatasetConfig) -> tuple[Dialogue, ...]:
    """The dialogues of a row.

    Args:
        cells: the row's values by column as the data have them, of which those of `dialogue_columns` are used.
        config: names of the columns.

    Raises:
        ValueError: the row has no dialogue, or a malformed one; the message is the reason alone.
    """
    raw, cells = cells, {name: plain(cells[name]) for name in dialogue_columns(config) if name in cells}
    kind = cells.get(config.kind_column)
    for column in MESSAGES:
        if messages := cells.get(column):
            return (_dialogue(_said(messages, column), kind),)
    prompt, completion = cells.get(PROMPT), cells.get(COMPLETION)
    if PROMPT in cells and COMPLETION in cells and not (_is_blank(prompt) and _is_blank(completion)):
        if not any(isinstance(part, dict) for part in (*as_list(prompt), *as_list(completion))):
            return _pairs(prompt, completion, kind, raw[COMPLETION])
        return (_dialogue([*_said(prompt, PROMPT, "user"), *_said(completion, COMPLETION, "assistant")], kind),)
    question, answer = cells.get(config.question_column), cells.get(config.answer_column)
    if not (_is_blank(question) and _is_blank(answer)):
        return _pairs(question, answer, kind, raw.get(config.answer_column))
    captions = read_captions(cells.get(config.caption_column), may_lack=True)
    if not captions:
        raise ValueError("there is neither a question nor a caption")
    return dialogues_of_captions(captions)


def typed_answers(cells: Mapping[str, Any], config: DatasetConfig) -> dict[str, Any]:
    """The cells of a csv row, with an answer that pandas has written as a whole float or a switch read as that."""

    def typed(text: Any) -> Any:
        if not isinstance(text, str):
            return text
        return float(text) if _WHOLE_FLOAT.fullmatch(text.strip()) else _SWITCHES.get(text.strip(), text)

    return {**cells, **{name: typed(cells[name]) for name in (config.answer_column, COMPLETION) if name in cells}}


def _pairs(question: Any, answer: Any, kind: Any, raw_answer: Any) -> tuple[Dialogue, ...]:
    questions, answers = as_list(question), as_list(answer)
    if not isinstance(question, list | tuple) and isinstance(answer, list | tuple):
        is_text = isinstance(raw_answer, str) and not any(isinstance(item, str | dict) for item in answer)
        answers = [raw_answer if is_text else answer]  # text such as [12, 30], or several right ones
    if len(questions) != len(answers):
        raise ValueError(f"there are {len(questions)} questions and {len(answers)} answers")
    kinds = as_list(kind) if isinstance(kind, list | tuple) else [kind] * len(questions)
    if len(kinds) != len(questions):
        raise ValueError(f"there are {len(questions)} questions and {len(kinds)} kinds of question")
    return tuple(_dialogue(_said_in_pair(*pair), kind) for *pair, kind in zip(questions, answers, kinds, strict=True))


def _said_in_pair(question: Any, answer: Any) -> list[tuple[str, Any]]:
    if not (isinstance(question, str) and _TAG.match(question)):
        return [("user", question), ("assistant", answer)]
    _, *pieces = _TAG.split(question)
    said = [(tag.lower(), text) for tag, text in zip(pieces[::2], pieces[1::2], strict=True)]
    if said[-1][0] == "user":
        said.append(("assistant", ""))
    if said[-1][1].strip():
        raise ValueError("the last answer stands in the question and in the answer")
    return [*said[:-1], ("assistant", answer)]


def _said(messages: Any, column: str, role: str | None = None) -> list[tuple[str, Any]]:
    """Who says what in a list of messages; a text in its place is said by `role`, where there is one."""
    if role is not None and not _is_nested(messages):
        return [(role, messages)]
    if not isinstance(messages, list | tuple):
        raise ValueError(f"{column} is no list but {messages!r:.60}")
    said = [
        _role_and_text(message, column) if _is_nested(message) else (("user", "assistant")[number % 2], message)
        for number, message in enumerate(messages)
    ]
    return [(role, text) for role, text in said if role != "system"]


def _role_and_text(message: Any, column: str) -> tuple[str, Any]:
    if not isinstance(message, dict):
        raise ValueError(f"{column} holds {message!r:.60}, which is neither text nor an object of role and content")
    role = message.get("role") or message.get("from")
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(f"{column} has the role {role!r:.60}; known are {', '.join(_ROLES)}")
    content = message.get("content")
    content = message.get("value") if content in (None, "") else content
    if isinstance(content, list | tuple):  # parts, of which the images are left out
        texts = [part["text"] for part in content if isinstance(part, dict) and part.get("text")]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{column} has a part whose text is no text ({content!r:.60})")
        content = "\n".join(texts)
    return _ROLES[role], content


def _dialogue(said: Sequence[tuple[str, Any]], kind: Any) -> Dialogue:
    """Questions and answers in turn, less an answer before the first question and a question after the last answer."""
    first = int(said[:1] != [] and said[0][0] == "assistant")
    end = len(said) - int(said[first:] != [] and said[-1][0] == "user")
    roles, texts = [role for role, _ in said[first:end]], [text for _, text in said[first:end]]
    if roles != ["user", "assistant"] * (len(roles) // 2) or not roles:
        spoke = ", ".join(role for role, _ in said) or "nobody"
        raise ValueError(f"user and assistant do not speak in turn, a question first and an answer last ({spoke:.60})")
    pairs = zip(texts[::2], texts[1::2], strict=True)
    turns = tuple(_turn(_text(question, "question"), answer) for question, answer in pairs)
    return Dialogue(turns, read_label(kind, "kind of question"), num_dropped=len(said) - len(texts))


def _turn(question: str, answer: Any) -> Turn:
    """A turn with one answer, or with all that are in a list and not empty."""
    if not isinstance(answer, list | tuple):
        return Turn(question, _text(_in_words(answer), "answer"))
    found = (item.get("answer") if isinstance(item, dict) else item for item in answer)
    texts = [_in_words(item) for item in found if not is_missing(item)]
    return with_references(question, [_text(text, "answer") for text in texts or [None]])


def _in_words(value: Any) -> Any:
    """A number as its digits, without the point of a whole one, and a switch as yes or no; anything else as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if is_missing(value):
        return None
    if not isinstance(value, int | float | Decimal) or not math.isfinite(value):
        return value
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    if isinstance(value, int) or (value.is_integer() and abs(value) < _LARGEST_WHOLE):
        return str(int(value))
    short = np.float32(value)  # a column of 32 bits has more digits as a float of Python than were written
    return np.format_float_positional(short if float(short) == value else value, trim="-")


def _text(value: Any, what: str) -> str:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"the {what} is no text but {value!r:.60}")
    if value and not is_unicode(value):
        raise ValueError(f"the {what} is not UTF-8 text")
    text = (value or "").replace(_IMAGE, "").strip() if what == "question" else (value or "").strip()
    if not text:
        raise ValueError(f"the {what} is empty")
    return text


def _is_blank(value: Any) -> bool:
    return all(text is None or (isinstance(text, str) and not text.strip()) for text in as_list(value))


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict | list | tuple)
