"""What is said of texts that a model does not read whole."""

from __future__ import annotations

from impresa.data.chat import PlainChat
from impresa.data.dialogue import Dialogue, Turn, ask
from impresa.data.lengths import MOST_TEXTS, notes_on_captions, notes_on_dialogues
from impresa.data.tokenizers import train_tokenizer

SHORT, LONG = "a b c", "a b c d e f g h"


def test_captions_are_cut_exactly_where_they_are_counted() -> None:
    captions = [LONG] * 3 + [SHORT] * 22
    tokenizer = train_tokenizer(captions, 300, max_len=5)
    assert tokenizer([SHORT])[1].sum() == 5  # with start and end token
    assert notes_on_captions(captions, tokenizer) == (
        "12% of captions are longer than text_encoder.max_len (5 tokens), their ends are cut",
    )
    assert notes_on_captions([SHORT], tokenizer) == notes_on_captions([], tokenizer) == ()
    many = [LONG] * 30 + [SHORT] * MOST_TEXTS
    assert notes_on_captions(many, tokenizer)[0].startswith("less than 1% of the first 4,096 captions are longer")


def test_dialogues_are_counted_by_what_they_lose() -> None:
    long_answer = ask("what?", LONG)
    dropped = Dialogue((Turn("what?", "a"),), num_dropped=1)
    dialogues = [ask("what?", "a"), ask(f"{LONG}?", "a"), Dialogue((Turn("b", "c"),) * 6), long_answer, dropped]
    chat = PlainChat.train(dialogues, 300)
    limit = "decoder.max_len (9 tokens)"
    assert notes_on_dialogues(dialogues, chat, 9) == (
        f"40% of dialogues are longer than {limit}, early turns or the start of the question are cut",
        f"20% of dialogues cannot be used, nearly always because their answer leaves no room for a question in {limit}",
        "20% of dialogues open with an answer or end with a question, which are left out",
    )
    assert notes_on_dialogues(dialogues[:1], chat, 9) == ()
