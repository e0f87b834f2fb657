"""Answers as the official `openai` client asks for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from impresa.data.dialogue import Turn
from impresa.serving.chat_form import ChatForm, conversation_of
from pictures import png
from served import app_with, client_of, picture, served, talking_model
from waiting import wait_until

QUESTION = "what colour is it?"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(app_with(talking_model())) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


def image(number: int) -> Any:
    return {"type": "image_url", "image_url": {"url": picture(number), "detail": "low"}}


def user(*parts: Any) -> Any:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def seen(number: int) -> bytes:
    return png(number * 37, 20, 20)


def test_an_answer_is_that_of_ask(client: openai.OpenAI) -> None:
    for number in range(3):
        wanted = talking_model().ask(seen(number), QUESTION)
        found = client.chat.completions.create(model="tiny", messages=[user(image(number), QUESTION)])
        choice, usage = found.choices[0], found.usage
        assert choice.message.content == wanted
        assert choice.message.role == "assistant"
        assert choice.finish_reason == wanted.finish_reason
        assert usage is not None
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert 1 <= usage.completion_tokens <= talking_model().generation.max_new_tokens


def test_several_turns_and_a_system_message(client: openai.OpenAI) -> None:
    messages = [user(image(1), QUESTION), {"role": "assistant", "content": "red"}, user("sure?")]
    wanted = "".join(talking_model().stream(seen(1), "sure?", turns=[Turn(QUESTION, "red")]))
    assert client.chat.completions.create(model="tiny", messages=messages).choices[0].message.content == wanted
    system = [{"role": "system", "content": "be brief"}, *messages]
    told = client.chat.completions.create(model="tiny", messages=system)
    plain = client.chat.completions.create(model="tiny", messages=messages)
    assert told.usage is not None
    assert plain.usage is not None
    assert told.usage.prompt_tokens > plain.usage.prompt_tokens


def test_two_pictures(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model="tiny", messages=[user(image(1), image(2), QUESTION)])
    assert found.choices[0].message.content == talking_model().ask([[seen(1), seen(2)]], [QUESTION])[0]


def test_settings_of_generation(client: openai.OpenAI) -> None:
    def ask(**settings: Any) -> str:
        messages = [user(image(1), QUESTION)]
        content = client.chat.completions.create(model="tiny", messages=messages, **settings).choices[0].message.content
        assert content is not None
        return content

    def asked(**settings: Any) -> str:
        return str(talking_model().ask(seen(1), QUESTION, generation=settings))

    drawn = {"temperature": 1.3, "top_p": 0.8, "seed": 5}
    assert ask(**drawn) == asked(**drawn)
    assert ask(**{**drawn, "seed": 6}) == asked(**{**drawn, "seed": 6})
    assert asked(**drawn) != asked(**{**drawn, "seed": 6})
    assert ask(max_tokens=2) == ask(max_completion_tokens=2) == asked(max_new_tokens=2)
    assert ask(temperature=0, top_p=0.5, seed=3) == asked()
    whole = asked()
    stop = whole[len(whole) // 2 :][:2]
    assert ask(stop=stop) == ask(stop=[stop, "zzz"]) == asked(stop=(stop,)) != whole


def test_a_stream_has_the_same_answer(client: openai.OpenAI) -> None:
    given: Any = {"model": "tiny", "messages": [user(image(2), QUESTION)], "temperature": 1.0, "seed": 3}
    whole = client.chat.completions.create(**given)
    chunks = list(client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}))
    *said, end, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in said) == whole.choices[0].message.content
    assert said[0].choices[0].delta.role == "assistant"
    assert end.choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.choices == []
    assert last.usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    plain = list(client.chat.completions.create(**given, stream=True))
    assert plain[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_answers_in_batches_are_those_of_single_requests(url: str) -> None:
    """Different pictures, questions and lengths, drawn by one seed, at once."""
    settings = {"temperature": 1.0, "seed": 4}
    wanted = {}
    for number in range(8):
        question, length = f"what is {'so ' * (number % 3)}red?", 2 + number % 4
        answer = talking_model().ask(seen(number), question, generation={**settings, "max_new_tokens": length})
        wanted[number] = question, length, str(answer)
    found: dict[int, str | None] = {}

    def ask(number: int) -> None:
        question, length, _ = wanted[number]
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
            given: Any = {"messages": [user(image(number), question)], "max_tokens": length, **settings}
            found[number] = client.chat.completions.create(model="tiny", **given).choices[0].message.content

    threads = [threading.Thread(target=ask, args=(number,)) for number in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: answer for number, (_, _, answer) in wanted.items()}


def test_who_leaves_a_stream_ends_it(url: str) -> None:
    body = {"messages": [user(image(1), QUESTION)], "stream": True, "max_tokens": 90, "temperature": 1.9, "seed": 2}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        assert next(answer.iter_lines()).startswith("data: ")
    wait_until(lambda: "impresa_waiting_inputs 0.0" in httpx.get(f"{url}/metrics", timeout=60).text)


GOOD = [user(image(1), QUESTION)]
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no picture": ({"messages": [user("hi")]}, "messages: there is neither a picture nor a sound"),
    "no words": ({"messages": [user(image(1))]}, "messages: a picture or a sound comes with words"),
    "no message": ({"messages": []}, "messages: the first and the last must be the user's"),
    "an answer last": (
        {"messages": [*GOOD, {"role": "assistant", "content": "red"}]},
        "messages: the first and the last must be the user's",
    ),
    "an answer with a picture": (
        {"messages": [*GOOD, {"role": "assistant", "content": [image(1)]}, user("so?")]},
        "messages[1].content: only users send",
    ),
    "a late system message": ({"messages": [*GOOD, {"role": "system", "content": "x"}]}, "messages[1].role: system"),
    "a tool": ({"messages": [*GOOD, {"role": "tool", "content": "x"}]}, "messages[1].role: must be"),
    "three pictures": ({"messages": [user(image(1), image(2), image(3), "so?")]}, "messages: this model takes pic"),
    "a sound": (
        {"messages": [user({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, "so?")]},
        "messages[0].content[0].input_audio.data: this model has no audio encoder",
    ),
    "a video": (
        {"messages": [user({"type": "video_url", "video_url": {"url": "x"}}, "so?")]},
        "messages[0].content[0]",
    ),
    "temperature": ({"temperature": 3}, "temperature: "),
    "temperature in words": ({"temperature": "hot"}, "temperature: "),
    "top_p": ({"top_p": 1.5}, "top_p: "),
    "max_tokens": ({"max_tokens": 0}, "max_tokens: "),
    "n": ({"n": 2}, "n: there is one answer to a request; leave it out"),
    "a stop that is none": ({"stop": 3}, "stop: give up to 4 texts"),
    "stops that are none": ({"stop": ["a", None]}, "stop: give up to 4 texts"),
    "a penalty": ({"frequency_penalty": 0.5}, "frequency_penalty: there are no penalties here; leave it out"),
    "vLLM's penalty": ({"repetition_penalty": 1.2}, "repetition_penalty: "),
    "top_k": ({"top_k": 5}, "top_k: the run's own"),
    "probabilities": ({"top_logprobs": 3}, "top_logprobs: "),
    "stops": ({"stop": ["a"] * 5}, "stop: "),
    "an empty stop": ({"stop": ""}, "stop: "),
    "logprobs": ({"logprobs": True}, "logprobs: "),
    "tools": ({"tools": [{"type": "function"}]}, "tools: this model calls no tools; leave it out"),
    "a bias": ({"logit_bias": {"5": 100}}, "logit_bias: "),
    "functions": ({"functions": [{"name": "f"}]}, "functions: "),
    "speech": ({"modalities": ["text", "audio"]}, "modalities: "),
    "a format": ({"response_format": {"type": "json_object"}}, "response_format: "),
    "options of no stream": ({"stream_options": {"include_usage": True}}, "stream_options: "),
    "a long question": ({"messages": [user(image(1), "so " * 500)]}, "messages: the question and the answer"),
}


@pytest.fixture(scope="module")
def plain() -> Iterator[Any]:
    with client_of(app_with(talking_model())) as client:
        yield client


@pytest.mark.parametrize(("body", "fault"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals(plain: Any, body: dict[str, Any], fault: str, stream: bool) -> None:
    streamed = {"stream": True} if stream and "stream_options" not in body else {}
    answer = plain.post("/v1/chat/completions", json={"messages": GOOD, **streamed, **body})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["message"].startswith(fault)
    assert error["param"] == fault.partition(":")[0] or error["param"].startswith(fault.partition(":")[0])


def test_a_model_that_answers_embeds_nothing(plain: Any) -> None:
    answer = plain.post("/v1/embeddings", json={"input": "a"})
    assert answer.status_code == 400
    assert "embeds nothing" in answer.json()["error"]["message"]


def test_unknown_fields_are_left_alone(plain: Any) -> None:
    body = {"messages": GOOD, "user": "me", "store": False, "metadata": {}, "parallel_tool_calls": True}
    body |= {"tools": [], "logit_bias": {}, "modalities": ["text"], "response_format": {"type": "text"}}
    body |= {"n": 1, "presence_penalty": 0.0, "repetition_penalty": 1, "top_k": -1, "logprobs": False, "stop": None}
    assert plain.post("/v1/chat/completions", json=body).status_code == 200


def test_empty_answers_and_system_messages_may_be_sent_back(plain: Any) -> None:
    """A model may say nothing, and programs send what was said, and a system message that nobody has filled in."""
    said = [*GOOD, {"role": "assistant", "content": ""}, user("sure?", "")]
    answer = plain.post("/v1/chat/completions", json={"messages": said})
    assert answer.status_code == 200
    found = conversation_of([{"role": "system", "content": ""}, *said])
    assert (found.turns, found.question, found.system) == ([Turn(QUESTION, "")], "sure?", None)


def test_what_has_no_effect_does_not_keep_requests_apart() -> None:
    defaults = talking_model().generation
    forms = [ChatForm(messages=[], temperature=0.0, seed=seed, top_p=top_p) for seed, top_p in ((1, 0.3), (2, 1.0))]
    assert forms[0].settings(defaults) == forms[1].settings(defaults)
    assert ChatForm(messages=[], seed=-1, temperature=1.0).settings(defaults).seed == 999_999_999
