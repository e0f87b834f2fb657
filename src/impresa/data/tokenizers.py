"""The tokenizer of a text tower from scratch: byte-level BPE, trained on the run's own captions.

Bytes are its alphabet, so that no text is unknown to it. Text is normalised as CLIP does: NFC, white space collapsed,
lower case.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from impresa.errors import ConfigError, DataError

_START, _END, _PAD = "<|start|>", "<|end|>", "<|pad|>"
_SPECIAL = [_START, _END, _PAD]
_FILE = "tokenizer.json"
_SMALLEST = 256 + len(_SPECIAL)


class TextBatcher(Protocol):
    """Whatever turns texts into padded token ids."""

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T) int64 token ids and (B, T) bool mask."""
        ...


class TextTokenizer:
    """Texts to padded token ids, with a start and an end token around each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wrap a tokenizer that `train_tokenizer` made; use that, or `load`."""
        self._tokenizer = tokenizer
        # Batches are small and workers are forked: threads of the library would only be in the way of both.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        # A caption may contain the words "<|end|>": as text they are text.
        self._tokenizer.encode_special_tokens = True
        self.start_id, self.end_id, self.pad_id = (_special_id(tokenizer, token) for token in _SPECIAL)

    def __reduce__(self) -> tuple[type[TextTokenizer], tuple[Tokenizer]]:
        # The library's own pickling forgets that special tokens in a text are text; the constructor knows.
        return TextTokenizer, (self._tokenizer,)

    @property
    def vocab_size(self) -> int:
        """Number of tokens: at most what was asked for, less when the captions did not give so many."""
        return int(self._tokenizer.get_vocab_size())

    @property
    def max_len(self) -> int:
        """Longest text in tokens, start and end included; longer ones are cut and keep their end token."""
        truncation = self._tokenizer.truncation
        return int(truncation["max_length"]) if truncation else sys.maxsize

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokenize a batch.

        Returns:
            input_ids: (B, T) int64, padded on the right; T is the longest text of the batch, at most `max_len`.
            attention_mask: (B, T) bool, true where there is a token.
        """
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        input_ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
        mask = np.array([encoding.attention_mask for encoding in encodings], dtype=bool)
        return torch.from_numpy(input_ids), torch.from_numpy(mask)

    def encode(self, text: str) -> list[int]:
        """The tokens of one text, without start and end token."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, normalised as the tokenizer saw it; special tokens are left out."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True).removeprefix(" ")

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json` into the directory, in the format that other tools read as well."""
        directory.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(directory / _FILE))

    @classmethod
    def load(cls, directory: Path) -> TextTokenizer:
        """Read what `save` wrote.

        Raises:
            DataError: there is no such file, or it is damaged.
        """
        path = directory / _FILE
        if not path.is_file():
            raise DataError(f"{path}: no such file; give the tokenizer folder of a run")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for a damaged file
            raise DataError(f"{path}: cannot be read ({error}); restore the file") from error
        return cls(tokenizer)


def _special_id(tokenizer: Tokenizer, token: str) -> int:
    id = tokenizer.token_to_id(token)
    if id is None:
        raise DataError(f"tokenizer: it has no token {token}; give one that `train_tokenizer` made")
    return int(id)


def train_tokenizer(captions: Iterable[str], vocab_size: int, max_len: int | None) -> TextTokenizer:
    """Train byte-level BPE on captions or other texts; the same texts give the same tokenizer.

    Args:
        captions: texts, read once.
        vocab_size: upper bound of the number of tokens, at least 259: the bytes, start, end and padding.
        max_len: longest text in tokens, start and end included; None cuts none.

    Raises:
        ConfigError: `vocab_size` or `max_len` is too small.
    """
    if vocab_size < _SMALLEST:
        raise ConfigError(f"vocab_size: {vocab_size} tokens cannot hold all bytes; give at least {_SMALLEST}")
    if max_len is not None and max_len < 3:
        raise ConfigError(f"max_len: {max_len} leaves no room between start and end token; give at least 3")
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    # A space before the first word as well: "red" is the same token at the start and later on.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    start, end = tokenizer.token_to_id(_START), tokenizer.token_to_id(_END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}", special_tokens=[(_START, start), (_END, end)]
    )
    if max_len is not None:
        tokenizer.enable_truncation(max_len)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(_PAD), pad_token=_PAD)
    return TextTokenizer(tokenizer)
