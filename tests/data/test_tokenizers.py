"""The tokenizer: nothing is unknown to it, texts come back, and every text keeps its end."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from impresa.data import tokenizers
from impresa.data.tokenizers import TextTokenizer, train_tokenizer, train_word_tokenizer
from impresa.errors import ConfigError, DataError

CAPTIONS = ["a small red circle", "a large blue circle", "a small blue star", "A SMALL RED star"] * 4
ODD_TEXTS = ["Ünïcödé 日本語 🎉🏳️‍🌈", "tab\tand\nnewline", "<|end|> is text, <|pad|> too", "\x00\ud7ff", "ﬁ Ⅳ İstanbul"]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer(CAPTIONS, 400, 16)


def test_words_of_the_captions_are_single_tokens_anywhere_in_a_text(tokenizer: TextTokenizer) -> None:
    ids, _ = tokenizer(["red circle", "circle red"])
    assert ids.shape == (2, 4)
    assert ids[0, 1:3].tolist() == ids[1, 1:3].flip(0).tolist()


def test_vocabulary_is_bounded_and_holds_all_bytes(tokenizer: TextTokenizer) -> None:
    assert 259 < tokenizer.vocab_size < 400
    assert train_tokenizer(CAPTIONS, 262, 16).vocab_size == 262
    assert train_tokenizer([], 400, 16).vocab_size == 259
    ids, _ = tokenizer(ODD_TEXTS)
    assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size


def normalised(tokenizer: TextTokenizer, text: str) -> str:
    """The text that is encoded in place of `text`."""
    return tokenizer._tokenizer.normalizer.normalize_str(text)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_any_text_comes_back_normalised(text: str) -> None:
    tokenizer = train_tokenizer(CAPTIONS, 400, 200)
    ids, _ = tokenizer([text])
    assert tokenizer.decode(ids[0]) == normalised(tokenizer, text)
    assert ids[0].tolist().count(tokenizer.end_id) == 1
    assert ids[0].tolist().count(tokenizer.pad_id) == 0


def test_text_is_lower_cased_composed_and_its_white_space_collapsed(tokenizer: TextTokenizer) -> None:
    assert normalised(tokenizer, "  Cafe\u0301\n\t AU  lait ") == "caf\u00e9 au lait"
    ids, _ = tokenizer(["A  Red\nStar ", "a red star"])
    assert torch.equal(ids[0], ids[1])


def test_a_batch_is_padded_to_its_longest_text(tokenizer: TextTokenizer) -> None:
    ids, mask = tokenizer(["a small red circle", "a star"])
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)
    assert mask.tolist() == [[True] * 6, [True] * 4 + [False] * 2]
    assert ids[:, 0].tolist() == [tokenizer.start_id] * 2
    assert [ids[0, 5].item(), ids[1, 3].item()] == [tokenizer.end_id] * 2
    assert (ids[1, 4:] == tokenizer.pad_id).all()


def test_an_empty_text_is_its_start_and_end(tokenizer: TextTokenizer) -> None:
    for empty in ("", "  \n"):
        ids, mask = tokenizer([empty])
        assert ids.tolist() == [[tokenizer.start_id, tokenizer.end_id]]
        assert mask.all()


def test_a_long_text_is_cut_and_keeps_its_end(tokenizer: TextTokenizer) -> None:
    ids, mask = tokenizer(["a small red circle " * 30, "x"])
    assert ids.shape == (2, tokenizer.max_len) == (2, 16)
    assert ids[0, 0] == tokenizer.start_id
    assert ids[0, -1] == tokenizer.end_id
    assert mask[0].all()


def test_saved_and_loaded_it_is_the_same(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    loaded = TextTokenizer.load(tmp_path / "tokenizer")
    texts = [*ODD_TEXTS, "", "a small red circle " * 30]
    for one, two in zip(tokenizer(texts), loaded(texts), strict=True):
        assert torch.equal(one, two)
    assert (loaded.vocab_size, loaded.max_len) == (tokenizer.vocab_size, tokenizer.max_len)
    assert [path.name for path in (tmp_path / "tokenizer").iterdir()] == ["tokenizer.json"]


def test_sent_to_another_process_it_is_the_same(tokenizer: TextTokenizer) -> None:
    sent = pickle.loads(pickle.dumps(tokenizer))
    for one, two in zip(tokenizer(ODD_TEXTS), sent(ODD_TEXTS), strict=True):
        assert torch.equal(one, two)


def test_texts_that_were_seen_before_give_the_same_rows_in_any_batch(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = pickle.loads(pickle.dumps(tokenizer))
    encoded: list[str] = []
    encode = fresh._tokenizer.encode_batch_fast
    counting = SimpleNamespace(encode_batch_fast=lambda texts: encoded.extend(texts) or encode(texts))
    monkeypatch.setattr(fresh, "_tokenizer", counting)
    batches = (["a star", "a small red circle"], ["a star", "", "a star"], ["a small red circle " * 30, "a star"])
    for batch in batches * 2:
        ids, mask = fresh(batch)
        whole = tokenizer._tokenizer.encode_batch_fast(batch)
        assert ids.tolist() == [encoding.ids for encoding in whole]
        assert mask.int().tolist() == [encoding.attention_mask for encoding in whole]
    assert sorted(encoded) == sorted({text for batch in batches for text in batch})
    monkeypatch.setattr(tokenizers, "_MOST_KEPT", 0)
    for _ in range(2):
        fresh(["a new text"])
    assert encoded[-2:] == ["a new text"] * 2


def test_the_same_captions_give_the_same_tokenizer_in_another_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from impresa.data.tokenizers import train_tokenizer;"
        "train_tokenizer(eval(sys.argv[1]), 300, 16).save(Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, repr(CAPTIONS), str(tmp_path / "other")], check=True)
    train_tokenizer(iter(CAPTIONS), 300, 16).save(tmp_path / "this")
    this, other = (json.loads((tmp_path / name / "tokenizer.json").read_text()) for name in ("this", "other"))
    assert this == other


def test_sizes_without_room_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"vocab_size: 258 .* at least 259"):
        train_tokenizer(CAPTIONS, 258, 16)
    with pytest.raises(ConfigError, match=r"max_len: 2 .* at least 3"):
        train_tokenizer(CAPTIONS, 300, 2)


def test_missing_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="Invalid JSON"):
        TextTokenizer.load(tmp_path)
    for vocab, merges, fault in (
        ({"a": 0}, [], r"no token <\|start\|>"),
        ({"a": 1_000_000_000}, [], "numbers of the tokens"),
        ({"a": 0}, [["a", "b"]], "cannot be read"),
    ):
        foreign = {"added_tokens": [], "model": {"type": "BPE", "vocab": vocab, "merges": merges}}
        (tmp_path / "tokenizer.json").write_text(json.dumps(foreign))
        with pytest.raises(DataError, match=fault):
            TextTokenizer.load(tmp_path)


FIXED = {"direction": "Right", "pad_id": 2, "pad_type_id": 0, "pad_token": "<|pad|>", "pad_to_multiple_of": None}
GROWTH = {"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * 1_000}


@pytest.mark.parametrize(
    "change",
    [
        {"padding": {**FIXED, "strategy": {"Fixed": 10**12}}},
        {"padding": {**FIXED, "strategy": "BatchLongest", "pad_to_multiple_of": 10**12}},
        {"normalizer": {"type": "Sequence", "normalizers": [GROWTH] * 5}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "////AGFh"}},
        {"truncation": {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 99}},
        {"post_processor": None, "decoder": None, "pre_tokenizer": None},
    ],
    ids=str,
)
def test_nothing_but_tokens_merges_and_length_is_taken_from_a_file(
    tokenizer: TextTokenizer, change: dict[str, object], tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert TextTokenizer.load(tmp_path)._tokenizer.to_str() == tokenizer._tokenizer.to_str()


def test_words_are_tokens_and_unknown_ones_are_left_out(tmp_path: Path) -> None:
    words = train_word_tokenizer(["A red  circle", "two circles, one RED"], 100, 6)
    assert words.vocab_size == 4 + len(["a", "red", "circle", "two", "circles", "one"])
    assert words.decode(words.encode("Red, CIRCLE!")) == "red circle"
    assert words.encode("a violet circle") == words.encode("a circle")
    ids, mask = words(["violet", "red square circle", "a red circle two circles one"])
    assert mask.sum(dim=1).tolist() == [2, 4, 6]
    assert ids[0, :2].tolist() == [words.start_id, words.end_id]
    words.save(tmp_path)
    loaded = TextTokenizer.load(tmp_path)
    again, same = pickle.loads(pickle.dumps(loaded))(["violet", "red square circle", "a red circle two circles one"])
    assert torch.equal(again, ids)
    assert torch.equal(same, mask)
    assert loaded.max_len == 6


def test_the_most_frequent_words_are_kept() -> None:
    words = train_word_tokenizer(["red red blue", "red blue green"], 6, None)
    assert words.vocab_size == 6
    assert words.encode("red blue green") == words.encode("red blue")


def test_a_damaged_table_of_words_is_one_line(tmp_path: Path) -> None:
    train_word_tokenizer(["red circle"], 10, 8).save(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"circle": 4', '"circle": 40'), encoding="utf-8")
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        TextTokenizer.load(tmp_path)
