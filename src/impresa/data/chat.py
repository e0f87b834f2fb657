"""Token ids of dialogues: the frame around questions and answers, and the tokens that a decoder learns.

A dialogue is a sequence of texts, question and answer in turn, with a frame before each and an end token after each
answer. `ChatFormat` joins them and cuts long ones; supervised are each answer and the token that ends it, nothing else.
Its two subclasses define the frames: the chat template of a pretrained language model, or a plain separator for a
decoder from scratch, whose tokenizer is trained on the run's own questions and answers.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal

from impresa.config.decoder import DecoderConfig
from impresa.data.dialogue import Dialogue, Turn, texts_of
from impresa.data.text import is_unicode
from impresa.data.tokenizers import TextTokenizer, train_tokenizer
from impresa.errors import ConfigError, DataError
from impresa.hub import from_pretrained, reading
from impresa.json_files import read_json

_MODEL = "decoder.model"
_SETTINGS = "chat.json"
_PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}\n\n"
    "{% elif message.role == 'user' %}Question:\n{{ message.content }}\n"
    "{% else %}Answer:\n{{ message.content }}{{ eos_token }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Answer:\n{% endif %}"
)
"""For language models that come without a chat template: each text begins a line, and the end token ends an answer."""
_ONE_DAY = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"
"""Before templates that tell the model today's date: an answer must not hang on the day on which it is asked."""
_PLACEHOLDER = "\ue000"
"""For texts in a template; from Unicode's private area, so that no template contains it."""


@dataclass(frozen=True)
class Prompt:
    """The tokens before an answer, fitted into the bound of its length."""

    ids: list[int]
    """Token ids."""
    num_cut: int
    """Tokens at the start of the question that were cut."""
    num_forgotten: int
    """Earlier turns that were left out, the oldest ones."""


class ChatFormat(ABC):
    """Dialogues to tokens and back. It can be sent to another process."""

    end_ids: tuple[int, ...]
    """Tokens that end an answer; the first one is used in training."""
    pad_id: int
    """Token that pads rows, under a mask."""
    system: str | None
    """Text before the first question, `decoder.system_prompt`."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of tokens."""

    @abstractmethod
    def frames(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids before each question and each answer, the last answer's too.

        `texts` are questions and answers in turn, up to the last question or its answer.
        """

    @abstractmethod
    def tokens(self, text: str) -> list[int]:
        """Token ids of a question or an answer; the names of special tokens in it are text."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of generated ids, without special tokens."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write what `load_chat` reads."""

    @abstractmethod
    def with_system(self, system: str | None) -> ChatFormat:
        """The same format with another `system`."""

    def encode(self, dialogue: Dialogue, max_len: int) -> tuple[list[int], list[bool]]:
        """A dialogue for training: T token ids, at most `max_len`, and T flags that are true on supervised tokens.

        A longer dialogue loses its oldest turns, each as a whole, then the start of its last question; never a part of
        an answer.

        Raises:
            DataError: the last answer leaves no room for a question; the message is the reason alone.
        """
        return self._join(*self._fit(_texts(dialogue.turns), max_len)[:2])

    def is_cut(self, dialogue: Dialogue, max_len: int) -> bool:
        """True for a dialogue of which `encode` leaves something out, with the same error."""
        return len(self.encode(dialogue, sys.maxsize)[0]) > max_len and bool(self.encode(dialogue, max_len))

    def prompt(self, turns: Sequence[Turn], question: str, max_len: int, num_new: int = 0) -> list[int]:
        """Token ids up to the answer to `question`, see `fitted_prompt`."""
        return self.fitted_prompt(turns, question, max_len, num_new).ids

    def fitted_prompt(self, turns: Sequence[Turn], question: str, max_len: int, num_new: int = 0) -> Prompt:
        """The prompt of the answer to `question`, with the same token ids as those of `encode`.

        Args:
            turns: earlier questions and answers, oldest first.
            question: the new question.
            max_len: bound of the number of ids and new ones; cut as in `encode`.
            num_new: longest answer in tokens. Room is left for it, but at most half of the room beside the frame.

        Raises:
            DataError: the question is empty or no UTF-8 text, or has no room.
        """
        if not question.strip():
            raise DataError("the question is empty; ask something")
        if not is_unicode(question):
            raise DataError("the question is not UTF-8 text; write it in that encoding")
        question = question.strip()
        num_framing = len(self._join(self.frames([question]), [[]])[0])
        room = min(num_new, max(max_len - num_framing, 0) // 2)
        frames, tokens, num_cut, num_forgotten = self._fit([*_texts(turns), question], max_len - room)
        return Prompt(self._join(frames, tokens)[0], num_cut, num_forgotten)

    def _fit(self, texts: list[str], max_len: int) -> tuple[list[list[int]], list[list[int]], int, int]:
        """Frames and texts as token ids, the number of those that were cut, and of the turns that were left out."""
        num_forgotten, tokens = 0, [self.tokens(text) for text in texts]
        while True:
            frames = self.frames(texts)
            excess = len(self._join(frames, tokens)[0]) - max_len
            if excess <= 0:
                return frames, tokens, 0, num_forgotten
            if len(texts) <= 2:
                break
            texts, tokens, num_forgotten = texts[2:], tokens[2:], num_forgotten + 1
        if excess >= len(tokens[0]):
            what = f"an answer of {len(tokens[1])} tokens leaves" if len(tokens) > 1 else "the frame leaves"
            raise DataError(f"{what} no room for a question in {max_len} tokens; raise decoder.max_len")
        return frames, [tokens[0][excess:], *tokens[1:]], excess, num_forgotten

    def _join(self, frames: list[list[int]], tokens: list[list[int]]) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        supervised: list[bool] = []
        for number, (frame, text) in enumerate(zip_longest(frames, tokens, fillvalue=())):
            ends_an_answer = number > 0 and number % 2 == 0
            ids += [*frame, *text]
            supervised += [ends_an_answer and index == 0 for index in range(len(frame))]
            supervised += [number % 2 == 1] * len(text)
        if len(tokens) == len(frames):
            ids.append(self.end_ids[0])
            supervised.append(True)
        return ids, supervised


def _texts(turns: Sequence[Turn]) -> list[str]:
    return [text for turn in turns for text in (turn.question, turn.answer)]


class PlainChat(ChatFormat):
    """The format question, separator, answer, end, with `system` before all. Texts are normalised like captions: lower
    case, spaces collapsed.

    The start token of the tokenizer, which must cut no text, is the separator.
    """

    def __init__(self, tokenizer: TextTokenizer, system: str | None = None) -> None:
        self._tokenizer = tokenizer
        self.system = system
        self.end_ids = (tokenizer.end_id,)
        self.pad_id = tokenizer.pad_id

    @classmethod
    def train(cls, dialogues: Iterable[Dialogue], vocab_size: int, system: str | None = None) -> PlainChat:
        """The format with a tokenizer trained on all questions and answers, see `train_tokenizer`."""
        return cls(train_tokenizer(texts_of(dialogues), vocab_size, max_len=None), system)

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.vocab_size

    def frames(self, texts: Sequence[str]) -> list[list[int]]:
        separator, end = [self._tokenizer.start_id], [self._tokenizer.end_id]
        num_turns = (len(texts) + 1) // 2
        return [self.tokens(self.system or ""), separator, *[end, separator] * (num_turns - 1)]

    def tokens(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode(ids)

    def save(self, directory: Path) -> None:
        self._tokenizer.save(directory)
        _write_settings(directory, "plain", self.system)

    def with_system(self, system: str | None) -> PlainChat:
        return PlainChat(self._tokenizer, system)


class TemplateChat(ChatFormat):
    """The chat template and the tokenizer of a language model, with thinking turned off; a plain template where the
    tokenizer has none.

    The template is rendered once with placeholders for the texts; the parts between them are the frames. Each dialogue
    is rendered as well, and must equal its frames and texts together. `system` is the system turn, or stands before the
    first question in a template that knows no such turn.

    Args:
        tokenizer: transformers' tokenizer.
        name: its name in an error.
        system: see `ChatFormat`.

    Raises:
        ConfigError: there is neither a template nor an end token, or the template ends an answer without a token of its
            own.
    """

    def __init__(self, tokenizer: Any, name: str = "the tokenizer", system: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self._frames: dict[int, tuple[list[str], list[list[int]]]] = {}
        if not tokenizer.chat_template:
            if tokenizer.eos_token_id is None:
                raise ConfigError(f"{_MODEL}: {name} has no end token; set its eos_token and save it again")
            tokenizer.chat_template = _PLAIN_TEMPLATE
        self.system = system
        self._has_system_turn = self._knows_system_turns()
        self.end_ids = self._find_ends()
        self.pad_id = self.end_ids[-1]

    @classmethod
    def from_model(cls, name: str, system: str | None = None) -> TemplateChat:
        """The format of a language model by Hugging Face id or path.

        Raises:
            ConfigError: the tokenizer is missing, or see above.
        """
        from transformers import AutoTokenizer

        with reading(_MODEL, name):
            tokenizer = from_pretrained(AutoTokenizer, name)
        return cls(tokenizer, name, system)

    @property
    def vocab_size(self) -> int:
        return len(self._tokenizer)

    def frames(self, texts: Sequence[str]) -> list[list[int]]:
        """See `ChatFormat.frames`. Raises `DataError` for texts that the template changes."""
        num_turns = (len(texts) + 1) // 2
        asked = texts[: 2 * num_turns - 1]
        between, ids = self._frames_of(num_turns)
        joined = "".join(chain.from_iterable(zip_longest(between, asked, fillvalue="")))
        if joined != self.render(asked):
            raise DataError("the chat template changes what is said; leave out its own words, such as </think>")
        return ids

    def render(self, texts: Sequence[str]) -> str:
        """The rendered template of questions and answers in turn, up to the start of the next answer."""
        messages = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]
        if self.system and self._has_system_turn:
            messages.insert(0, {"role": "system", "content": self.system})
        elif self.system:
            messages[0]["content"] = f"{self.system}\n\n{messages[0]['content']}"
        return self._apply(messages)

    def _apply(self, messages: list[dict[str, str]]) -> str:
        # The options are explicit, because versions of the template differ in their defaults.
        try:
            template = self._tokenizer.get_chat_template()
            if "strftime_now" in template:
                template = _ONE_DAY + template
            rendered = self._tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except Exception as error:  # a template is a program
            reason = " ".join(str(error).split())
            raise DataError(f"the chat template of {self._name} cannot be applied ({reason}); restore it") from error
        return str(rendered)

    def tokens(self, text: str) -> list[int]:
        encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return list(encoded["input_ids"])

    def decode(self, ids: Iterable[int]) -> str:
        ids = [int(i) for i in ids]
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def save(self, directory: Path) -> None:
        self._tokenizer.save_pretrained(directory)
        _write_settings(directory, "template", self.system)

    def with_system(self, system: str | None) -> TemplateChat:
        return TemplateChat(self._tokenizer, self._name, system)

    def _knows_system_turns(self) -> bool:
        """True if the template shows what a system turn says: some refuse such a turn, and others leave it out."""
        turns = [{"role": "system", "content": _PLACEHOLDER}, {"role": "user", "content": "?"}]
        try:
            return _PLACEHOLDER in self._apply(turns)
        except DataError:
            return False

    def _frames_of(self, num_turns: int) -> tuple[list[str], list[list[int]]]:
        """The frames of so many turns as texts and as token ids, computed once."""
        if num_turns not in self._frames:
            texts = [f"{_PLACEHOLDER}{number}{_PLACEHOLDER}" for number in range(2 * num_turns - 1)]
            rest, between = self.render(texts), []
            for text in texts:
                before, _, rest = rest.partition(text)
                between.append(before)
            between.append(rest)
            ids = [self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in between]
            self._frames[num_turns] = between, ids
        return self._frames[num_turns]

    def _find_ends(self) -> tuple[int, ...]:
        """The token after an answer, and those that end any text of the language model."""
        special = {*self._tokenizer.get_added_vocab().values(), *self._tokenizer.all_special_ids}
        after_an_answer = self._frames_of(2)[1][2][:1]
        if not special.intersection(after_an_answer):
            fault = f"the chat template of {self._name} ends no answer with a token of its own"
            raise ConfigError(f"{_MODEL}: {fault}; use another model, or another template")
        ends = [*after_an_answer, self._tokenizer.eos_token_id, self._tokenizer.pad_token_id]
        return tuple(dict.fromkeys(int(end) for end in ends if end is not None))


def prepare_chat(config: DecoderConfig, dialogues: Iterable[Dialogue]) -> ChatFormat:
    """The format of a pretrained model, or one trained on the dialogues for a decoder from scratch.

    Raises:
        ConfigError: the model's tokenizer cannot be read or used, or the vocabulary is too small.
    """
    if config.is_pretrained:
        return TemplateChat.from_model(config.model, config.system_prompt)
    return PlainChat.train(dialogues, config.vocab_size, config.system_prompt)


def is_chat(directory: Path) -> bool:
    """True for a folder of a chat format, false for one of a tokenizer of captions."""
    return (directory / _SETTINGS).is_file()


def load_chat(directory: Path) -> ChatFormat:
    """The format that `ChatFormat.save` wrote.

    Raises:
        DataError: its files are missing or damaged.
    """
    try:
        settings = read_json(directory / _SETTINGS, _Settings)
        if settings.format == "plain":
            return PlainChat(TextTokenizer.load(directory), settings.system_prompt)
        from transformers import AutoTokenizer

        return TemplateChat(from_pretrained(AutoTokenizer, directory), str(directory), settings.system_prompt)
    except (ConfigError, DataError):
        raise
    except Exception as error:  # tokenizers and templates of other libraries raise nearly everything
        reason = " ".join(str(error).split())
        raise DataError(f"{directory}: no chat format can be read ({reason}); restore the folder") from error


@dataclass(frozen=True)
class _Settings:
    """The file that names the format; `qwen` is what `template` was called once."""

    format: Literal["plain", "template", "qwen"]
    system_prompt: str | None = None


def _write_settings(directory: Path, kind: str, system: str | None) -> None:
    settings = {"format": kind} | ({} if system is None else {"system_prompt": system})
    (directory / _SETTINGS).write_text(json.dumps(settings) + "\n", encoding="utf-8")
