"""Sentences about texts of the data that a model does not read whole, from the first few thousand of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from impresa.data.chat import ChatFormat
from impresa.data.dialogue import Dialogue
from impresa.data.tokenizers import PretrainedTokenizer, TextTokenizer
from impresa.errors import DataError

MOST_TEXTS = 4096
"""Texts that are looked at."""


def notes_on_captions(captions: Iterable[str], tokenizer: TextTokenizer | PretrainedTokenizer) -> tuple[str, ...]:
    """A sentence if captions are cut, else nothing."""
    texts = list(islice(captions, MOST_TEXTS))
    fault = f"are longer than text_encoder.max_len ({tokenizer.max_len} tokens), their ends are cut"
    return _sentences({fault: tokenizer.num_cut(texts)}, "captions", texts)


def notes_on_dialogues(dialogues: Iterable[Dialogue], chat: ChatFormat, max_len: int) -> tuple[str, ...]:
    """A sentence for each way in which dialogues lose something."""
    asked = list(islice(dialogues, MOST_TEXTS))
    cut = useless = 0
    for dialogue in asked:
        try:
            cut += chat.is_cut(dialogue, max_len)
        except DataError:
            useless += 1
    limit = f"decoder.max_len ({max_len} tokens)"
    faults = {
        f"are longer than {limit}, early turns or the start of the question are cut": cut,
        f"cannot be used, nearly always because their answer leaves no room for a question in {limit}": useless,
        "open with an answer or end with a question, which are left out": sum(d.num_dropped > 0 for d in asked),
    }
    return _sentences(faults, "dialogues", asked)


def _sentences(faults: dict[str, int], what: str, texts: Sequence[object]) -> tuple[str, ...]:
    of_what = f"the first {MOST_TEXTS:,} {what}" if len(texts) == MOST_TEXTS else what
    return tuple(f"{_share(number, len(texts))} of {of_what} {fault}" for fault, number in faults.items() if number)


def _share(number: int, total: int) -> str:
    return f"{number / total:.0%}" if number / total >= 0.01 else "less than 1%"
