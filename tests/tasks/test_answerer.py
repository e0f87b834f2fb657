"""Asking a model: which image each question is about, and that batches, streams and settings change no answer."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from impresa.config.decoder import GenerationConfig
from impresa.data.audio import LogMelTransform
from impresa.data.dialogue import CAPTION_PROMPTS, Turn
from impresa.errors import ConfigError, DataError
from impresa.tasks.answering.answerer import AnsweringModel
from impresa.tasks.answering.subjects import Subject, subjects_of
from impresa.tasks.arguments import Named
from tiny_vlm import answering, picture, tiny_vlm

QUESTIONS = ["what?", "how many shapes are there in the image?", "is there a circle?", "what colour?"]
ONE_TOKEN = GenerationConfig(max_new_tokens=1)
HEARING = ("audio_encoder.backbone=spectrogram", "audio_encoder.dim=16", "audio_encoder.depth=1")
HEARING += ("audio_encoder.num_heads=2", "audio_encoder.embed_dim=16", "audio_encoder.audio_max_seconds=0.2")


@pytest.fixture(scope="module")
def model() -> AnsweringModel:
    torch.manual_seed(0)  # the fixture of the whole suite comes after this one
    return answering(tiny_vlm("decoder.generation.max_new_tokens=12"))


def images(num: int = 4) -> list[Image.Image]:
    return [picture(seed) for seed in range(num)]


def one_by_one(model: AnsweringModel, pictures: list[Any], questions: list[str]) -> list[str]:
    return [str(model.ask(image, question)) for image, question in zip(pictures, questions, strict=True)]


def test_answers_depend_on_image_and_question(model: AnsweringModel) -> None:
    assert len({str(model.ask(image, "what?")) for image in images(8)}) > 3
    assert len(set(model.ask(picture(0), QUESTIONS))) > 2


def test_one_gives_a_text_and_several_give_a_list(model: AnsweringModel) -> None:
    pictures = images()
    assert isinstance(model.ask(pictures[0], "what?"), str)
    assert model.ask(pictures[:1], "what?") == model.ask(pictures[0], ["what?"]) == [model.ask(pictures[0], "what?")]
    assert model.ask(pictures, "what?") == one_by_one(model, pictures, ["what?"] * 4)
    assert model.ask(pictures[1], QUESTIONS) == one_by_one(model, pictures[1:2] * 4, QUESTIONS)
    assert model.ask(pictures, QUESTIONS) == one_by_one(model, pictures, QUESTIONS)
    assert model.ask([], "what?") == model.ask(pictures[0], []) == []


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_the_batch_size_changes_nothing(batch_size: int, model: AnsweringModel) -> None:
    pictures = images() * 2
    expected = one_by_one(model, pictures, QUESTIONS * 2)
    assert model.ask(pictures, QUESTIONS * 2, batch_size=batch_size) == expected
    several = model.ask(pictures[2], QUESTIONS * 2, batch_size=batch_size)
    assert several == one_by_one(model, [pictures[2]] * 8, QUESTIONS * 2)


def test_a_picture_is_the_same_in_every_form(model: AnsweringModel, tmp_path: Path) -> None:
    image = picture(3)
    image.save(tmp_path / "a.png")
    raw = torch.tensor(list(image.tobytes()), dtype=torch.uint8).view(20, 20, 3).permute(2, 0, 1)
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), raw, model.preprocessing.image(image), np.array(image)]
    forms += [(tmp_path / "a.png").read_bytes(), BytesIO((tmp_path / "a.png").read_bytes())]
    assert [model.ask(form, "what?") for form in forms] == [model.ask(image, "what?")] * 7
    assert model.ask(torch.stack([raw, raw]), "what?") == [model.ask(image, "what?")] * 2


@pytest.mark.parametrize(
    ("pictures", "questions", "message"),
    [
        (2, ["a?", "b?", "c?"], r"^ask: 3 questions about 2 images; give one, or as many as images$"),
        (2, ["a?", 3], r"^questions\[1\]: got int; give a string$"),
        (2, "  ", r"^questions: the question is empty; ask something$"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(
    pictures: int, questions: Any, message: str, model: AnsweringModel
) -> None:
    with pytest.raises(DataError, match=message):
        model.ask(images(pictures), questions)


def test_an_image_that_cannot_be_read_is_named(model: AnsweringModel, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.jpg"):
        model.ask(tmp_path / "a.jpg", "what?")


def test_arguments_that_cannot_be_used_are_named(model: AnsweringModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^images\[3\]: nowhere\.png: there is no such file"):
        model.ask([*images(3), "nowhere.png"], "what?", batch_size=2)
    with pytest.raises(DataError, match=r"^questions\[1\]: the question is empty"):
        model.ask(picture(0), ["what?", " "])
    with pytest.raises(DataError, match=r"^batch_size: -1 is not a whole number"):
        model.caption(picture(0), batch_size=-1)
    for argument, given in (("image", {"image": 3}), ("question", {"question": 3}), (r"turns\[0\]", {"turns": ["a"]})):
        with pytest.raises(DataError, match=rf"^{argument}: got "):
            model.stream(**{"image": picture(0), "question": "what?", **given})


def test_sounds_for_a_model_that_does_not_hear_are_refused(model: AnsweringModel) -> None:
    sound = (torch.zeros(1600), 16000)
    with pytest.raises(DataError, match=r"^ask: this model has no audio encoder; leave the sounds out$"):
        model.ask(picture(0), "what?", sounds=[sound])
    with pytest.raises(DataError, match=r"^ask: 1 sounds for 2 images; give as many of each$"):
        model.ask(images(2), "what?", sounds=[sound])


def test_a_model_that_hears_is_told_sounds_with_images(monkeypatch: pytest.MonkeyPatch) -> None:
    hearing = answering(tiny_vlm(*HEARING))
    hearing.preprocessing = replace(hearing.preprocessing, audio=LogMelTransform(0.2))
    sounds = [(0.3 * torch.randn(800 * (number + 1)), 16000) for number in range(4)]
    read: list[torch.Tensor] = []
    generate = hearing.model.decoder.generate

    def noting(ids: Any, mask: Any, prefix: torch.Tensor, prefix_mask: torch.Tensor, **settings: Any) -> Any:
        read.extend(tokens[real] for tokens, real in zip(prefix, prefix_mask, strict=True))
        return generate(ids, mask, prefix, prefix_mask, **settings)

    monkeypatch.setattr(hearing.model.decoder, "generate", noting)
    hearing.ask(images(), "what?", sounds=sounds, batch_size=3)
    together = read[:]
    for image, sound in zip(images(), sounds, strict=True):
        read.clear()
        hearing.ask(image, "what?", sounds=sound)
        list(hearing.stream(image, "what?", sound=sound))
        expected = together.pop(0)
        assert len(expected) > 4
        for found in read:
            torch.testing.assert_close(found, expected)


def test_images_sounds_and_both_may_be_asked_about_at_once() -> None:
    hearing = answering(tiny_vlm(*HEARING, "decoder.generation.max_new_tokens=12"))
    hearing.preprocessing = replace(hearing.preprocessing, audio=LogMelTransform(0.2))
    sounds = [(0.3 * torch.randn(800 * (number + 1)), 16000) for number in range(3)]
    seen, heard = [picture(0), None, picture(1), picture(2)], [sounds[0], sounds[1], None, sounds[2]]
    together = hearing.ask(seen, QUESTIONS, sounds=heard)
    pairs = list(zip(seen, QUESTIONS, heard, strict=True))
    assert together == [hearing.ask(image, question, sounds=sound) for image, question, sound in pairs]
    assert together == ["".join(hearing.stream(image, question, sound=sound)) for image, question, sound in pairs]
    subjects = subjects_of(seen, heard)[0]
    prefix = hearing._prefix(subjects)
    for number, subject in enumerate(subjects):
        alone = hearing._prefix([subject])
        torch.testing.assert_close(
            prefix.tokens[number, prefix.mask[number]], alone.tokens[alone.mask], atol=1e-5, rtol=0
        )
    assert prefix.mask.sum(dim=1).unique().numel() > 2


def test_a_caption_is_the_answer_to_the_first_caption_prompt(model: AnsweringModel) -> None:
    assert model.caption(images()) == model.ask(images(), CAPTION_PROMPTS[0])
    assert model.caption(picture(0), generation=ONE_TOKEN) == model.ask(
        picture(0), CAPTION_PROMPTS[0], generation=ONE_TOKEN
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_is_the_answer_in_pieces(seed: int, model: AnsweringModel) -> None:
    pieces = list(model.stream(picture(seed), QUESTIONS[seed % 4]))
    assert "".join(pieces) == model.ask(picture(seed), QUESTIONS[seed % 4])
    assert all(pieces)


def test_a_stream_comes_before_its_end(model: AnsweringModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = iter(model.chat.tokens("red circle"))
    logits = model.model.decoder.head

    def scripted(hidden: torch.Tensor) -> torch.Tensor:
        found = torch.zeros_like(logits(hidden))
        found[..., next(tokens, model.chat.end_ids[0])] = 9.0
        return found

    monkeypatch.setattr(model.model.decoder, "head", scripted)
    pieces = list(model.stream(picture(0), "what?"))
    assert "".join(pieces) == "red circle"
    assert len(pieces) > 2


def test_a_stream_refuses_at_once_what_it_cannot_answer(model: AnsweringModel) -> None:
    with pytest.raises(ConfigError, match="beams"):
        model.stream(picture(0), "what?", generation=GenerationConfig(num_beams=2))
    with pytest.raises(DataError, match="the question is empty"):
        model.stream(picture(0), "")


def test_a_fault_in_the_stream_is_raised_where_it_is_read(
    model: AnsweringModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = model.stream(picture(0), "what?")
    monkeypatch.setattr(model.model.decoder, "head", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(stream)


def test_a_stream_computes_when_it_is_read_and_in_no_thread(
    model: AnsweringModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    letter, logits, threads = model.chat.tokens("a")[0], model.model.decoder.head, []

    def endless(hidden: torch.Tensor) -> torch.Tensor:
        threads.append(threading.current_thread())
        found = torch.zeros_like(logits(hidden))
        found[..., letter] = 9.0
        return found

    monkeypatch.setattr(model.model.decoder, "head", endless)
    stream = model.stream(picture(0), "what?", generation=GenerationConfig(max_new_tokens=200))
    assert threads == []
    assert next(stream) == "a"
    assert threads == [threading.current_thread()]
    stream.close()
    assert len(threads) == 1


def test_a_stream_that_is_interrupted_leaves_the_model_as_it_was(
    model: AnsweringModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, head = model.ask(picture(0), "what?"), model.model.decoder.head
    with monkeypatch.context() as patched:
        calls = iter(range(3))

        def interrupted(hidden: torch.Tensor) -> torch.Tensor:
            if next(calls) == 2:
                raise KeyboardInterrupt
            return head(hidden)

        patched.setattr(model.model.decoder, "head", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(model.stream(picture(0), "what?"))
    assert not torch.is_inference_mode_enabled()
    assert "".join(model.stream(picture(0), "what?")) == model.ask(picture(0), "what?") == expected


def test_what_was_said_before_counts(model: AnsweringModel) -> None:
    said = (Turn("what is there?", "a red circle"),)
    changed = []
    for number, question in enumerate(QUESTIONS):
        image = picture(number)
        alone, after = ("".join(model.stream(image, question, turns=turns)) for turns in ((), said))
        prompt = model.chat.fitted_prompt(said, question, model.max_len, model.generation.max_new_tokens)
        assert model.answer(model._prefix([Subject((Named("image", image),))]), torch.tensor([0]), [prompt]) == [after]
        changed.append(after != alone)
    assert any(changed)


def test_the_runs_generation_settings_are_the_defaults() -> None:
    short = answering(tiny_vlm("decoder.generation.max_new_tokens=1"))
    longer = GenerationConfig(max_new_tokens=12)
    answers, others = short.ask(images(8), "what?"), short.ask(images(8), "what?", generation=longer)
    assert short.ask(images(8), "what?", generation=ONE_TOKEN) == answers
    assert sum(map(len, answers)) < sum(map(len, others))


HOT = {"temperature": 3.0, "seed": 5}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_seed_draws_the_same_in_any_batch(batch_size: int, model: AnsweringModel) -> None:
    expected = model.ask(images(), "what?", generation=HOT)
    assert model.ask(images(), "what?", generation=HOT, batch_size=batch_size) == expected
    assert model.ask(images(), "what?", generation=HOT | {"seed": 6}) != expected
    assert "".join(model.stream(picture(0), "what?", generation=HOT)) == expected[0]
    assert len(set(model.ask([picture(0)] * 4, "what?", generation=HOT))) > 1


@pytest.mark.parametrize("num_beams", [1, 2])
def test_texts_that_stop_an_answer_cut_it_before_them(num_beams: int, model: AnsweringModel) -> None:
    settings = {"max_new_tokens": 12, "num_beams": num_beams}
    free = model.ask(images(8), "what?", generation=settings)
    stops = sorted({text[len(text) // 2] for text in free if text} - {"\ufffd"})
    found = model.ask(images(8), "what?", generation=settings | {"stop": stops})
    assert not any(stop in text for text in found for stop in stops)
    assert found != free
    stopped = [any(stop in text for stop in stops) for text in free]
    assert num_beams > 1 or [text.finish_reason == "stop" for text in found] == stopped
    one_each = [model.ask(image, "what?", generation=settings | {"stop": stops}) for image in images(8)]
    assert one_each == found
    if num_beams == 1:
        streams = [model.stream(image, "what?", generation=settings | {"stop": stops}) for image in images(8)]
        assert ["".join(stream) for stream in streams] == found


def test_an_answer_says_why_it_ended_and_whether_its_question_was_cut(
    model: AnsweringModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, logits = model.chat.tokens("red circle"), model.model.decoder.head
    script: list[int] = []

    def scripted(hidden: torch.Tensor) -> torch.Tensor:
        found = torch.zeros_like(logits(hidden))
        found[..., script.pop(0)] = 9.0
        return found

    def said(question: str, num_new: int, ids: list[int]) -> Any:
        script[:] = ids
        answer = model.ask(picture(0), question, generation={"max_new_tokens": num_new})
        script[:] = ids
        stream = model.stream(picture(0), question, generation={"max_new_tokens": num_new})
        returned: list[Any] = []

        def read() -> Iterator[str]:
            returned.append((yield from stream))

        assert "".join(read()) == answer == returned[0]
        assert vars(returned[0]) == vars(answer)
        return answer

    monkeypatch.setattr(model.model.decoder, "head", scripted)
    end, num = model.chat.end_ids[0], len(tokens)
    whole = said("what?", num + 1, [*tokens, end])
    assert (whole, whole.finish_reason, whole.question_cut) == ("red circle", "stop", False)
    cut = said("what? " * 40, num, [*tokens, end])
    assert (cut, cut.finish_reason, cut.question_cut) == ("red circle", "length", True)
    assert said("what?", num, [end]).finish_reason == "stop"
    assert json.dumps([cut]) == '["red circle"]'  # it is a text
    assert vars(pickle.loads(pickle.dumps(cut))) == vars(cut)


BAD: dict[str, tuple[Any, str]] = {
    "no mapping": (3, r"^generation: got int; it must be a GenerationConfig of impresa\.config, or a dict of "),
    "theirs": (
        transformers.GenerationConfig(),
        r"^generation: got GenerationConfig; it must be a GenerationConfig of ",
    ),
    "unknown": ({"max_tokens": 3}, r"^generation\.max_tokens: unknown key; did you mean max_new_tokens\?$"),
    "bound": (
        {"max_new_tokens": 0},
        r"^generation\.max_new_tokens: got 0; it must be a whole number at least 1 and at most 131072$",
    ),
    "type": ({"max_new_tokens": "3"}, r"^generation\.max_new_tokens: got '3' \(text\); it must be a whole number"),
    "truth": ({"num_beams": True}, r"^generation\.num_beams: got true; "),
    "nan": ({"temperature": float("nan")}, r"^generation\.temperature: got nan; "),
    "share": (
        {"top_p": 1.5, "temperature": 1},
        r"^generation\.top_p: got 1\.5; it must be a number at least 0 and at mo",
    ),
    "tiny": (
        {"temperature": 1e-45},
        r"^generation\.temperature: 1e-45 is too small to divide by; 0 takes the likeliest",
    ),
    "penalty": (
        {"repetition_penalty": 0},
        r"^generation\.repetition_penalty: got 0; it must be a number at least 0\.01 ",
    ),
    "n-gram": ({"no_repeat_ngram_size": -1}, r"^generation\.no_repeat_ngram_size: got -1; "),
    "top-k": ({"top_k": 5}, r"^generation\.top_k: 5 does nothing at temperature 0, which draws nothing; leave it out$"),
    "top-p": (
        GenerationConfig(top_p=0.5),
        r"^generation\.top_p: 0\.5 does nothing at temperature 0, which draws nothing",
    ),
    "seed": (
        {"seed": -1},
        r"^generation\.seed: got -1; it must be a whole number at least 0 and at most 1000000000 or null$",
    ),
    "stop": ({"stop": [""]}, r"^generation\.stop: got \[''\]; it must be text that is not empty or a list, each item "),
    "whole": (GenerationConfig(max_new_tokens=-2), r"^generation\.max_new_tokens: got -2; "),
}


@pytest.mark.parametrize("kind", BAD)
def test_settings_that_cannot_be_are_told_in_a_line(kind: str, model: AnsweringModel) -> None:
    settings, message = BAD[kind]
    for use in (model.ask, model.caption, model.stream):
        asked = [] if use == model.caption else ["what?"]
        with pytest.raises(ConfigError, match=message):
            use(picture(0), *asked, generation=settings)  # type: ignore[operator]


def test_all_faults_of_settings_are_told_at_once(model: AnsweringModel) -> None:
    with pytest.raises(ConfigError) as caught:
        model.ask(picture(0), "what?", generation={"max_new_tokens": 0, "num_beams": 0, "top_q": 1})
    assert len(caught.value.lines) == 3


def test_the_settings_of_a_model_are_checked_too() -> None:
    model = answering(tiny_vlm())
    model.generation = GenerationConfig(max_new_tokens=0)
    with pytest.raises(ConfigError, match=r"^generation\.max_new_tokens: got 0; "):
        model.ask(picture(0), "what?")


def test_a_dict_stands_beside_the_runs_own_settings() -> None:
    model = answering(tiny_vlm("decoder.generation.max_new_tokens=2"))
    model.generation = replace(model.generation, temperature=3.0, top_p=0.5)
    greedy = model.ask(images(), "what?", generation={"temperature": 0})  # the run's own top-p is nobody's fault
    assert greedy == model.ask(images(), "what?", generation=GenerationConfig(max_new_tokens=2))
    assert model.ask(images(), "what?", generation={}) != greedy


def test_sampling_follows_torchs_seed(model: AnsweringModel) -> None:
    hot = GenerationConfig(max_new_tokens=12, temperature=3.0)

    def drawn(seed: int) -> Any:
        torch.manual_seed(seed)
        return model.ask(images(), "what?", generation=hot)

    assert drawn(1) == drawn(1) != drawn(2)


def test_it_works_after_someone_turned_on_training_mode() -> None:
    model = answering(tiny_vlm("decoder.recursion.dropout=0.5", "vision_encoder.drop_rate=0.5"))
    expected = model.ask(images(), "what?")
    model.model.train()
    assert model.ask(images(), "what?") == expected


def test_too_long_a_question_loses_its_start(model: AnsweringModel) -> None:
    end = "and what is the colour of the shape on the left?"
    longer, longest = (f"{'well ' * num}{end}" for num in (60, 90))
    assert model.ask(picture(0), longer) == model.ask(picture(0), longest)
