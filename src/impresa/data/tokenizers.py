"""Tokenizers of text towers: byte-level BPE or whole words of the run's own captions, or a pretrained tower's own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel
from tokenizers.trainers import BpeTrainer, WordLevelTrainer
from torch import Tensor

from impresa.errors import CheckpointError, ConfigError, DataError
from impresa.hub import from_pretrained, read_config, reading
from impresa.json_files import RESTORE, read_json

_START, _END, _PAD = "<|start|>", "<|end|>", "<|pad|>"
_SPECIAL = [_START, _END, _PAD]
_UNKNOWN = "<|unknown|>"
_FILE = "tokenizer.json"
_SMALLEST = 256 + len(_SPECIAL)
_MOST_KEPT = 1 << 17
"""Texts whose token ids a process keeps: about 40 MiB of captions."""

_BACKBONE = "text_encoder.backbone"
_PRETRAINED_FILE = "batching.json"
_SIGLIP = ("siglip", "siglip_text_model")


class TextTokenizer:
    """Texts to padded token ids, with a start and an end token around each; made by `train_tokenizer`,
    `train_word_tokenizer` or `load`.

    Text is normalised as CLIP does: NFC, white space collapsed, lower case. Of words, unknown ones are left out; bytes
    are an alphabet to which no text is unknown.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._kept: dict[str, NDArray[np.int32]] = {}
        # Batches are small and workers are forked: threads of the library are bad for both.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        # A caption may contain the words "<|end|>", which are text there.
        self._tokenizer.encode_special_tokens = True
        self.start_id, self.end_id, self.pad_id = (_special_id(tokenizer, token) for token in _SPECIAL)
        self._unknown_id = tokenizer.token_to_id(_UNKNOWN)

    def __reduce__(self) -> tuple[type[TextTokenizer], tuple[Tokenizer]]:
        # The library's own pickling loses `encode_special_tokens`; the constructor sets it.
        return TextTokenizer, (self._tokenizer,)

    @property
    def backend(self) -> Tokenizer:
        """That of the library tokenizers, not to be changed."""
        return self._tokenizer

    @property
    def leaves_out(self) -> bool:
        """True if unknown words leave no token."""
        return self._unknown_id is not None

    @property
    def vocab_size(self) -> int:
        """Number of tokens: at most the number in the config, less if the captions did not give so many."""
        return int(self._tokenizer.get_vocab_size())

    @property
    def max_len(self) -> int:
        """Longest text in tokens, start and end included; longer ones are cut and keep their end token."""
        truncation = self._tokenizer.truncation
        return int(truncation["max_length"]) if truncation else sys.maxsize

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts to (B, T) int64 token ids and a (B, T) bool mask, true where there is a token.

        Rows are padded on the right; T is the longest text of the batch, at most `max_len`. The ids of a text are
        computed once and kept, because training reads the same captions in each epoch.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._kept]
        found = dict(zip(new, self.rows(new), strict=True))
        rows = [found[text] if text in found else self._kept[text] for text in texts]
        if len(self._kept) + len(found) <= _MOST_KEPT:
            self._kept |= found
        return self.padded(rows)

    def rows(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The token ids of each text as `padded` takes them; nothing is kept."""
        encodings = self._tokenizer.encode_batch_fast(list(texts)) if texts else []
        return [self._known(one.ids[: sum(one.attention_mask)]) for one in encodings]

    def padded(self, rows: Sequence[NDArray[np.int32]]) -> tuple[Tensor, Tensor]:
        """The batch that `__call__` makes of the texts of these rows."""
        return _padded(rows, self.pad_id)

    def _known(self, ids: Sequence[int]) -> NDArray[np.int32]:
        return np.array([id for id in ids if id != self._unknown_id], dtype=np.int32)

    def num_cut(self, texts: Sequence[str]) -> int:
        """The number of texts that are longer than `max_len`."""
        return sum(bool(encoding.overflowing) for encoding in self._tokenizer.encode_batch(texts))

    def encode(self, text: str) -> list[int]:
        """The tokens of one text, without start and end token."""
        return self._known(self._tokenizer.encode(text, add_special_tokens=False).ids).tolist()

    def decode(self, ids: Iterable[int]) -> str:
        """The normalised text of token ids; special tokens are left out."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True).removeprefix(" ")

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json` into the directory, in the library's own format."""
        directory.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(directory / _FILE))

    @classmethod
    def load(cls, directory: Path) -> TextTokenizer:
        """Read what `save` wrote.

        Only the tokens, their merges and the longest text are taken from the file: a normalizer or a padding of
        somebody else could take all memory, or all time.

        Raises:
            DataError: the file is missing or damaged.
        """
        path = directory / _FILE
        if not path.is_file():
            raise DataError(f"{path}: no such file; give the tokenizer folder of a run")
        try:
            stored = read_json(path, _File)
            tokenizer = stored.model.tokenizer()
            tokenizer.add_special_tokens([token for token in (*_SPECIAL, _UNKNOWN) if token in stored.model.vocab])
            tokenizer = _framed(tokenizer, stored.truncation.max_length if stored.truncation else None)
        except DataError:
            raise
        except CheckpointError as error:
            raise DataError(*error.lines) from error
        except Exception as error:  # the library raises bare Exception for merges of unknown tokens
            raise DataError(f"{path}: cannot be read ({error}); {RESTORE}") from error
        return cls(tokenizer)


def _padded(rows: Sequence[NDArray[np.int32]], pad_id: int, at_least: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of token ids as (B, T) int64, padded on the right, and their mask (B, T) bool; T is the longest of them."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max(initial=at_least)) < lengths[:, None]
    input_ids = np.full(mask.shape, pad_id, dtype=np.int64)
    input_ids[mask] = np.concatenate(rows) if rows else []
    return torch.from_numpy(input_ids), torch.from_numpy(mask)


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
        max_len: longest text in tokens, start and end included; None cuts no text.

    Raises:
        ConfigError: `vocab_size` or `max_len` is too small.
    """
    if vocab_size < _SMALLEST:
        raise ConfigError(f"vocab_size: {vocab_size} tokens cannot hold all bytes; give at least {_SMALLEST}")
    _check_length(max_len)
    tokenizer = _spelled(Tokenizer(BPE()))
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return TextTokenizer(_framed(tokenizer, max_len))


def train_word_tokenizer(captions: Iterable[str], vocab_size: int, max_len: int | None) -> TextTokenizer:
    """The words of captions, runs of letters and digits, each a token; the same texts give the same tokenizer.

    A text of unknown words alone is its start and end token. Pieces of a word that no caption has would say something
    of other words instead; what they say is noise to a tower that adds up its tokens.

    Args:
        captions: texts, read once.
        vocab_size: upper bound of the number of tokens; the most frequent words are kept.
        max_len: longest text in tokens, start and end included, and unknown words too; None cuts no text.

    Raises:
        ConfigError: `max_len` is too small.
    """
    _check_length(max_len)
    tokenizer = _in_words(Tokenizer(WordLevel(unk_token=_UNKNOWN)))
    special = [*_SPECIAL, _UNKNOWN]
    tokenizer.train_from_iterator(
        captions, WordLevelTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    )
    return TextTokenizer(_framed(tokenizer, max_len))


def _check_length(max_len: int | None) -> None:
    if max_len is not None and max_len < 3:
        raise ConfigError(f"max_len: {max_len} leaves no room between start and end token; give at least 3")


def _normalizer() -> normalizers.Normalizer:
    one_space = normalizers.Replace(Regex(r"\s+"), " ")
    return normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), one_space, normalizers.Strip()])


def _in_words(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with our way from texts to words."""
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\W+"), "removed")
    return tokenizer


def _spelled(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with our way from texts to bytes, and back."""
    tokenizer.normalizer = _normalizer()
    # A space before the first word as well: "red" is the same token at the start and later on.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _framed(tokenizer: Tokenizer, max_len: int | None) -> Tokenizer:
    """The same with the start and end token around each text, and what follows from their numbers."""
    start, end, pad = (_special_id(tokenizer, token) for token in _SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}", special_tokens=[(_START, start), (_END, end)]
    )
    if max_len is not None:
        tokenizer.enable_truncation(max_len)
    tokenizer.enable_padding(pad_id=pad, pad_token=_PAD)
    return tokenizer


@dataclass(frozen=True)
class _Model:
    """Tokens with their numbers."""

    vocab: dict[str, int]

    def __post_init__(self) -> None:
        if sorted(self.vocab.values()) != list(range(len(self.vocab))):
            raise ValueError("the numbers of the tokens are not those from 0 on")


@dataclass(frozen=True)
class _Pieces(_Model):
    """Merged bytes."""

    type: Literal["BPE"]
    merges: list[tuple[str, str]]

    def tokenizer(self) -> Tokenizer:
        return _spelled(Tokenizer(BPE(self.vocab, self.merges)))


@dataclass(frozen=True)
class _WholeWords(_Model):
    """Whole words, and the token of all others."""

    type: Literal["WordLevel"]

    def tokenizer(self) -> Tokenizer:
        return _in_words(Tokenizer(WordLevel(self.vocab, unk_token=_UNKNOWN)))


@dataclass(frozen=True)
class _Truncation:
    """Where texts are cut."""

    max_length: Annotated[int, Field(ge=3, le=1 << 20)]


@dataclass(frozen=True)
class _File:
    """The parts of the library's own file that are read; all else is the same in each."""

    model: Annotated[_Pieces | _WholeWords, Field(discriminator="type")]
    truncation: _Truncation | None = None


@dataclass(frozen=True)
class _Batching:
    """How a pretrained tokenizer is used, as its file says."""

    max_len: Annotated[int, Field(ge=2, le=1 << 20)]
    pads_fully: bool
    lower_case: bool


class PretrainedTokenizer:
    """A pretrained text tower's own tokenizer, with the interface of `TextTokenizer`.

    Args:
        tokenizer: transformers' tokenizer.
        max_len: longest text in tokens; longer ones are cut and keep their end token.
        pads_fully: pad every batch to `max_len`, for a tower that was trained so.
        lower_case: convert texts to lower case first, for a tower that was trained so.
    """

    def __init__(self, tokenizer: Any, *, max_len: int, pads_fully: bool = False, lower_case: bool = False) -> None:
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        self._tokenizer = tokenizer
        self.max_len = max_len
        self.pads_fully = pads_fully
        self.lower_case = lower_case

    @classmethod
    def from_backbone(cls, name: str, max_len: int) -> PretrainedTokenizer:
        """The tokenizer of a text tower by Hugging Face id or path.

        `max_len` is bounded by the tower's number of positions. SigLIP's texts are lower case and padded to it.

        Raises:
            ConfigError: the tokenizer is missing, or has no padding token.
        """
        from transformers import AutoTokenizer

        config = read_config(_BACKBONE, name)
        with reading(_BACKBONE, name):
            tokenizer = from_pretrained(AutoTokenizer, name)
            longest = min(tokenizer.model_max_length, max_len)
        if tokenizer.pad_token_id is None:
            fault = f"the tokenizer of {name} has no padding token"
            raise ConfigError(f"{_BACKBONE}: {fault}; set its pad_token and save it again")
        tower = getattr(config, "text_config", config)
        if config.model_type in _SIGLIP:
            return cls(tokenizer, max_len=tower.max_position_embeddings, pads_fully=True, lower_case=True)
        return cls(tokenizer, max_len=min(longest, getattr(tower, "max_position_embeddings", max_len)))

    @property
    def backend(self) -> Any:
        """That of transformers, not to be changed."""
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        return len(self._tokenizer)

    @property
    def end_id(self) -> int:
        end = self._tokenizer.eos_token_id
        return int(self._tokenizer.sep_token_id if end is None else end)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts to (B, T) int64 token ids, padded on the right, and a (B, T) bool mask, see `TextTokenizer`."""
        encoded = self._tokenizer(
            self._cased(texts),
            padding="max_length" if self.pads_fully else "longest",
            truncation=True,
            max_length=self.max_len,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return encoded["input_ids"], encoded["attention_mask"].bool()

    def rows(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The token ids of each text, see `TextTokenizer`."""
        if not texts:
            return []
        encoded = self._tokenizer(self._cased(texts), truncation=True, max_length=self.max_len)
        return [np.array(ids, dtype=np.int32) for ids in encoded["input_ids"]]

    def padded(self, rows: Sequence[NDArray[np.int32]]) -> tuple[Tensor, Tensor]:
        """The batch of these rows, see `TextTokenizer`."""
        return _padded(rows, self._tokenizer.pad_token_id, self.max_len if self.pads_fully else 0)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; special tokens are left out."""
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))

    def num_cut(self, texts: Sequence[str]) -> int:
        """The number of texts that are longer than `max_len`."""
        if not texts:
            return 0
        return sum(len(ids) > self.max_len for ids in self._tokenizer(self._cased(texts), verbose=False)["input_ids"])

    def _cased(self, texts: Sequence[str]) -> list[str]:
        return [text.lower() for text in texts] if self.lower_case else list(texts)

    def save(self, directory: Path) -> None:
        """Write the library's own files and the arguments into the directory."""
        self._tokenizer.save_pretrained(directory)
        settings = _Batching(self.max_len, pads_fully=self.pads_fully, lower_case=self.lower_case)
        (directory / _PRETRAINED_FILE).write_text(json.dumps(asdict(settings), indent=2) + "\n")

    @staticmethod
    def is_in(directory: Path) -> bool:
        """True for a directory that `save` wrote into."""
        return (directory / _PRETRAINED_FILE).is_file()

    @classmethod
    def load(cls, directory: Path) -> PretrainedTokenizer:
        """Read what `save` wrote.

        Raises:
            DataError: the folder or a file in it is missing or damaged.
        """
        from transformers import AutoTokenizer

        try:
            settings = read_json(directory / _PRETRAINED_FILE, _Batching)
            return cls(from_pretrained(AutoTokenizer, directory), **asdict(settings))
        except Exception as error:  # transformers and the libraries behind it raise nearly everything
            reason = " ".join(str(error).split())
            raise DataError(f"{directory}: no tokenizer can be read ({reason}); restore the folder") from error
