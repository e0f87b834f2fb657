"""What a dialogue becomes as text and tokens: frames, what is supervised, what is cut, and the way back."""

from __future__ import annotations

import pickle
from itertools import product
from pathlib import Path

import pytest

import tiny_chat
from impresa.config.decoder import DecoderConfig
from impresa.data.chat import ChatFormat, PlainChat, TemplateChat, load_chat, prepare_chat
from impresa.data.dialogue import Dialogue, Turn, ask
from impresa.errors import ConfigError, DataError
from tiny_causal import plain_tokenizer

DIALOGUES = [ask("what is there?", "a red circle"), ask("Is it  red?", "Yes"), ask("is there a star?", "no")]
LONG = Dialogue((Turn("what is there?", "a red circle"), Turn("is it red?", "yes"), Turn("and what else?", "a star")))
FORMATS = ("plain", "2.5", "3")
QWEN_2_5 = f"<|im_start|>system\n{tiny_chat.SYSTEM}<|im_end|>\n"
THOUGHTS = "<think>\n\n</think>\n\n"


def chat(kind: str) -> ChatFormat:
    return PlainChat.train(DIALOGUES * 3, 400) if kind == "plain" else TemplateChat(tiny_chat.tokenizer(kind))


def text(chat: ChatFormat, ids: list[int]) -> str:
    """The text of ids with the special tokens shown."""
    if isinstance(chat, PlainChat):
        tokenizer = chat._tokenizer._tokenizer
        return tokenizer.decode(ids, skip_special_tokens=False)
    return chat._tokenizer.decode(ids, skip_special_tokens=False)


def learned(chat: ChatFormat, dialogue: Dialogue, max_len: int = 500) -> list[str]:
    """The stretches that are supervised."""
    ids, supervised = chat.encode(dialogue, max_len)
    assert len(ids) == len(supervised) <= max_len
    stretches: list[list[int]] = [[]]
    for id, is_learned in zip(ids, supervised, strict=True):
        if is_learned:
            stretches[-1].append(id)
        elif stretches[-1]:
            stretches.append([])
    return [text(chat, stretch) for stretch in stretches if stretch]


def test_qwen_2_5_puts_its_system_line_before_the_question() -> None:
    assert text(chat("2.5"), chat("2.5").encode(ask("is it red?", "yes"), 500)[0]) == (
        QWEN_2_5 + "<|im_start|>user\nis it red?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"
    )


def test_qwen_3_starts_its_answer_with_an_empty_thought_and_has_no_system_line() -> None:
    assert text(chat("3"), chat("3").encode(ask("is it red?", "yes"), 500)[0]) == (
        "<|im_start|>user\nis it red?<|im_end|>\n<|im_start|>assistant\n" + THOUGHTS + "yes<|im_end|>"
    )


@pytest.mark.parametrize(("version", "system", "thoughts"), [("2.5", QWEN_2_5, ""), ("3", "", THOUGHTS)])
def test_earlier_turns_are_framed_as_the_template_frames_them(version: str, system: str, thoughts: str) -> None:
    assert text(chat(version), chat(version).encode(LONG, 500)[0]) == (
        f"{system}<|im_start|>user\nwhat is there?<|im_end|>\n<|im_start|>assistant\na red circle<|im_end|>\n"
        "<|im_start|>user\nis it red?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        f"<|im_start|>user\nand what else?<|im_end|>\n<|im_start|>assistant\n{thoughts}a star<|im_end|>"
    )


@pytest.mark.parametrize("version", ["2.5", "3"])
def test_tokens_are_those_of_the_whole_text(version: str) -> None:
    qwen = TemplateChat(tiny_chat.tokenizer(version, num_merges=60))
    ids, _ = qwen.encode(LONG, 500)
    assert ids == qwen._tokenizer(text(qwen, ids), add_special_tokens=False)["input_ids"]
    assert len(ids) < len(chat(version).encode(LONG, 500)[0])


def test_the_plain_frame_is_question_separator_answer_end() -> None:
    assert text(chat("plain"), chat("plain").encode(ask(" What  is THERE?", "a red\ncircle"), 500)[0]) == (
        " what is there?<|start|> a red circle<|end|>"
    )
    assert text(chat("plain"), chat("plain").encode(LONG, 500)[0]) == (
        " what is there?<|start|> a red circle<|end|> is it red?<|start|> yes<|end|>"
        " and what else?<|start|> a star<|end|>"
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_every_answer_and_its_end_are_learned_and_nothing_else(kind: str) -> None:
    end = "<|end|>" if kind == "plain" else "<|im_end|>"
    found = [stretch.strip() for stretch in learned(chat(kind), LONG)]
    assert found == [f"{answer}{end}" for answer in ("a red circle", "yes", "a star")]
    ids, supervised = chat(kind).encode(LONG, 500)
    assert supervised[-1]
    assert ids[-1] == chat(kind).end_ids[0]


@pytest.mark.parametrize(("kind", "num_before"), product(FORMATS, [0, 1, 2]))
def test_a_prompt_is_what_training_saw_before_the_answer(kind: str, num_before: int) -> None:
    before, now = LONG.turns[:num_before], LONG.turns[num_before]
    ids, _ = chat(kind).encode(Dialogue((*before, now)), 500)
    prompt = chat(kind).prompt(before, f"  {now.question} ", 500)
    answer = [*chat(kind).tokens(now.answer), chat(kind).end_ids[0]]
    assert prompt + answer == ids


@pytest.mark.parametrize("kind", FORMATS)
def test_words_like_special_tokens_are_text(kind: str) -> None:
    format = chat(kind)
    trick = ask("what?<|im_end|>\n<|start|><|end|>", "<|im_start|> <|endoftext|> <|end|><|pad|>")
    ids, supervised = format.encode(trick, 500)
    ordinary, _ = format.encode(ask("what?", "yes"), 500)
    special = {*format.end_ids, format.pad_id}
    assert sum(id in special for id in ids) == sum(id in special for id in ordinary)
    answer = [id for id, is_learned in zip(ids, supervised, strict=True) if is_learned][:-1]
    assert format.decode(answer) == trick.turns[0].answer


@pytest.mark.parametrize("kind", FORMATS)
def test_a_question_loses_its_start_and_an_answer_nothing(kind: str) -> None:
    long = ask("one two three four five", "a red circle")
    format = chat(kind)
    whole, flags = format.encode(long, 500)
    num_question, cut = len(format.tokens(long.turns[0].question)), 4
    shorter, shorter_flags = format.encode(long, len(whole) - cut)
    first = len(whole) - sum(flags) - len(format.frames([""])[1]) - num_question
    assert shorter == whole[:first] + whole[first + cut :]
    assert sum(shorter_flags) == sum(flags)
    assert len(format.prompt((), long.turns[0].question, len(whole) - 10)) <= len(whole) - 10
    smallest = len(whole) - num_question + 1
    assert len(format.encode(long, smallest)[0]) == smallest
    num_answer = len(format.tokens("a red circle"))
    with pytest.raises(DataError, match=rf"an answer of {num_answer} tokens leaves no room for a question in"):
        format.encode(long, smallest - 1)
    with pytest.raises(DataError, match=r"leaves no room for a question in 1 tokens; raise decoder\.max_len"):
        format.prompt((), "is it red?", 1)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_oldest_turns_go_first_and_whole(kind: str) -> None:
    format = chat(kind)
    last_two = Dialogue(LONG.turns[1:])
    room = len(format.encode(last_two, 500)[0])
    assert format.encode(LONG, len(format.encode(LONG, 500)[0]) - 1) == format.encode(last_two, 500)
    assert format.encode(LONG, room) == format.encode(last_two, 500)
    assert format.encode(LONG, room - 1) == format.encode(Dialogue(LONG.turns[2:]), 500)
    whole = format.prompt(LONG.turns[:2], "and what else?", 500)
    assert format.prompt(LONG.turns[:2], "and what else?", len(whole) - 1) == format.prompt(
        LONG.turns[1:2], "and what else?", 500
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_a_prompt_knows_what_did_not_fit(kind: str) -> None:
    format = chat(kind)
    whole = format.fitted_prompt(LONG.turns[:2], "and what else?", 500)
    assert (whole.ids, whole.num_cut, whole.num_forgotten) == (
        format.prompt(LONG.turns[:2], "and what else?", 500),
        0,
        0,
    )
    assert format.fitted_prompt(LONG.turns[:2], "and what else?", len(whole.ids) - 1).num_forgotten == 1
    alone = format.prompt((), "and what else?", 500)
    cut = format.fitted_prompt(LONG.turns[:2], "and what else?", len(alone) - 3)
    assert (len(cut.ids), cut.num_cut, cut.num_forgotten) == (len(alone) - 3, 3, 2)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_question_must_be_asked(kind: str) -> None:
    with pytest.raises(DataError, match="the question is empty"):
        chat(kind).prompt((), " \n", 100)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_question_is_text(kind: str) -> None:
    with pytest.raises(DataError, match="the question is not UTF-8 text"):
        chat(kind).prompt((), "how \udcff many?", 100)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_prompt_leaves_room_for_the_answer_as_training_did(kind: str) -> None:
    format_ = chat(kind)
    answer = format_.tokens("a red circle")
    dialogue = ask(("what is there? " * 100).strip(), "a red circle")
    ids, supervised = format_.encode(dialogue, 300)
    asked = ids[: supervised.index(True)]
    question = dialogue.turns[0].question
    assert format_.prompt((), question, 300, len(answer) + 1) == asked
    assert len(format_.prompt((), question, 300)) == 300
    num_framing = len(format_.prompt((), "is it?", 300)) - len(format_.tokens("is it?"))
    # Never more than half of what the frame leaves.
    assert len(format_.prompt((), question, 300, 290)) == 300 - (300 - num_framing) // 2
    assert len(format_.prompt((), question, num_framing + 1, 290)) == num_framing + 1


def test_thoughts_in_an_earlier_answer_are_refused_where_the_template_drops_them() -> None:
    thoughtful = Turn("what is there?", "<think>hm</think>a circle")
    with pytest.raises(DataError, match="the chat template changes what is said"):
        chat("3").encode(Dialogue((thoughtful, Turn("is it red?", "yes"))), 500)
    assert learned(chat("2.5"), Dialogue((thoughtful,))) == ["<think>hm</think>a circle<|im_end|>"]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_format_comes_back_from_its_folder_and_from_another_process(kind: str, tmp_path: Path) -> None:
    format = chat(kind)
    format.save(tmp_path / "chat")
    for copy in (load_chat(tmp_path / "chat"), pickle.loads(pickle.dumps(format))):
        assert type(copy) is type(format)
        assert (copy.end_ids, copy.pad_id, copy.vocab_size) == (format.end_ids, format.pad_id, format.vocab_size)
        odd = ask("<|im_end|> what?", "Ünïcödé <|end|>")
        assert copy.encode(odd, 300) == format.encode(odd, 300)
        assert copy.decode(copy.encode(odd, 300)[0]) == format.decode(format.encode(odd, 300)[0])


def test_a_folder_without_a_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no chat format can be read"):
        load_chat(tmp_path)
    (tmp_path / "chat.json").write_text('{"format": "plain"}')
    with pytest.raises(DataError, match=r"tokenizer\.json: no such file"):
        load_chat(tmp_path)
    (tmp_path / "chat.json").write_text('{"format": "qwen"}')
    with pytest.raises(DataError, match="no chat format can be read"):
        load_chat(tmp_path)


@pytest.mark.parametrize("version", ["2.5", "3"])
def test_text_ends_with_what_the_template_or_the_model_says(version: str) -> None:
    tokenizer = tiny_chat.tokenizer(version)
    message_end, text_end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    assert TemplateChat(tokenizer).end_ids == (message_end, text_end)
    tokenizer.eos_token = "<|endoftext|>"  # as base models have it
    assert TemplateChat(tokenizer).end_ids == (message_end, text_end)
    assert TemplateChat(tokenizer).pad_id == text_end
    assert TemplateChat(tokenizer).vocab_size == len(tokenizer)


def test_tokenizers_that_cannot_chat_are_refused() -> None:
    silent, endless = (tiny_chat.tokenizer() for _ in range(2))
    silent.chat_template = silent.eos_token = None
    endless.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    for tokenizer, fault in (
        (silent, "mine has no end token; set its eos_token"),
        (endless, "the chat template of mine ends no answer with a token of its own"),
    ):
        with pytest.raises(ConfigError, match=f"decoder.model: .*{fault}"):
            TemplateChat(tokenizer, "mine")


def test_a_tokenizer_without_a_template_gets_a_plain_one(tmp_path: Path) -> None:
    base = TemplateChat(plain_tokenizer())
    end = "<|endoftext|>"
    assert text(base, base.encode(LONG, 500)[0]) == (
        f"Question:\nwhat is there?\nAnswer:\na red circle{end}\nQuestion:\nis it red?\nAnswer:\nyes{end}\n"
        f"Question:\nand what else?\nAnswer:\na star{end}"
    )
    assert learned(base, LONG) == [f"{answer}{end}" for answer in ("a red circle", "yes", "a star")]
    assert base.pad_id == base.end_ids[0]  # there is no padding token
    base.save(tmp_path)
    assert load_chat(tmp_path).encode(LONG, 500) == base.encode(LONG, 500)


@pytest.mark.parametrize("kind", [*FORMATS, "base"])
def test_a_system_prompt_stands_before_the_first_question_and_is_kept(kind: str, tmp_path: Path) -> None:
    plain = TemplateChat(plain_tokenizer()) if kind == "base" else chat(kind)
    told = plain.with_system("be brief.")
    shown = {
        "plain": " be brief. what is there?<|start|>",
        "2.5": "<|im_start|>system\nbe brief.<|im_end|>\n<|im_start|>user\nwhat is there?<|im_end|>\n",
        "3": "<|im_start|>system\nbe brief.<|im_end|>\n<|im_start|>user\nwhat is there?<|im_end|>\n",
        "base": "be brief.\n\nQuestion:\nwhat is there?\n",
    }
    assert text(told, told.encode(LONG, 500)[0]).startswith(shown[kind])
    assert text(told, told.encode(LONG, 500)[0]).count("be brief.") == 1
    assert learned(told, LONG) == learned(plain, LONG)
    told.save(tmp_path)
    for other in (load_chat(tmp_path), pickle.loads(pickle.dumps(told))):
        assert other.prompt((), "is it red?", 500) == told.prompt((), "is it red?", 500)
    assert told.prompt((), "is it red?", 500) != plain.prompt((), "is it red?", 500)
    assert told.with_system(None).prompt((), "is it red?", 500) == plain.prompt((), "is it red?", 500)


@pytest.mark.parametrize("does", ["{{ raise_exception('no system turns') }}", ""], ids=["refuses", "leaves out"])
def test_a_template_without_system_turns_puts_the_prompt_before_the_question(does: str) -> None:
    tokenizer = tiny_chat.tokenizer("3")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}" + does + "{% else %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}<|im_start|>assistant\n"
    )
    told = TemplateChat(tokenizer, system="be brief.")
    assert text(told, told.prompt(LONG.turns[:1], "is it red?", 500)).startswith(
        "<|im_start|>user\nbe brief.\n\nwhat is there?<|im_end|>\n<|im_start|>assistant\na red circle<|im_end|>\n"
    )


def test_a_prompt_does_not_hang_on_the_day() -> None:
    tokenizer = tiny_chat.tokenizer("3")
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}\n" + tokenizer.chat_template
    dated = TemplateChat(tokenizer)
    assert text(dated, dated.prompt((), "is it red?", 500)).startswith("26 Jul 2024<|im_start|>user")


def test_the_decoder_decides_the_format(tmp_path: Path) -> None:
    tiny_chat.tokenizer("3").save_pretrained(tmp_path)
    told = prepare_chat(DecoderConfig(type="causal_lm", model=str(tmp_path), system_prompt="be brief."), [])
    assert (type(told), told.system) == (TemplateChat, "be brief.")
    assert isinstance(prepare_chat(DecoderConfig(type="qwen", model=str(tmp_path)), []), TemplateChat)
    plain = prepare_chat(DecoderConfig(type="trm", vocab_size=300, system_prompt="be brief."), DIALOGUES * 9)
    assert plain.system == "be brief."
    assert isinstance(plain, PlainChat)
    assert 259 < plain.vocab_size <= 300
    assert len(plain.tokens("circle")) < len("circle")
    with pytest.raises(ConfigError, match=r"decoder\.model: /nowhere/at/all cannot be loaded; there is no such folder"):
        prepare_chat(DecoderConfig(model="/nowhere/at/all"), [])
