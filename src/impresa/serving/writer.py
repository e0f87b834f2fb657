"""A model that answers, behind batches: conversations in, the pieces of their answers out.

Requests that choose their tokens alike are answered together, a token of each at a time, and between two tokens others
have their turn. Each answer is that which its request would get alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch

from impresa.config.decoder import GenerationConfig
from impresa.config.types import listed_names
from impresa.data.audio import load_audio
from impresa.data.chat import ChatFormat, Prompt
from impresa.data.images import load_image
from impresa.errors import ConfigError, DataError
from impresa.serving.chat_form import ChatForm, Conversation, conversation_of
from impresa.serving.embedder import together
from impresa.serving.engine import Engine, Room
from impresa.serving.faults import bad
from impresa.serving.media import Media, unreadable_picture, unreadable_sound
from impresa.serving.metrics import Metrics
from impresa.serving.parts import Part, check_amount, text_part
from impresa.serving.progress import PROGRESS, Progress
from impresa.serving.settings import Limits
from impresa.tasks.answering.answer import Growing, Reader
from impresa.tasks.answering.answerer import AnsweringModel
from impresa.tasks.answering.subjects import Subject, batch_of
from impresa.tasks.arguments import Named
from impresa.tasks.inputs import pixels_of

_GROUPS = 4
"""Batches that are written in turn."""
_MOST_TURNS = 256
_SYSTEMS = 64
"""Chat formats with a system text that are kept."""


@dataclass(frozen=True)
class Piece:
    """Some of an answer."""

    text: str
    finish_reason: str | None = None
    """Of the last piece."""
    num_read: int = 0
    """Of the last piece: tokens of the prompt, those of pictures and sounds included."""
    num_written: int = 0


@dataclass(eq=False)
class _Request:
    """A request that is being answered."""

    subject: Subject
    prompt: Prompt
    growing: Growing
    settings: GenerationConfig
    """All but the length of the answer."""
    num_new: int
    progress: Progress
    pieces: asyncio.Queue[Piece | Exception] = field(default_factory=asyncio.Queue)
    has_left: bool = False
    """Nobody waits for it any more."""
    is_done: bool = False

    @property
    def wants_more(self) -> bool:
        return not (self.is_done or self.has_left)

    def add(self, token: int, num_prefix: int) -> None:
        """Take the next token."""
        piece = self.growing.add(token)
        self.is_done = self.growing.has_ended or self.growing.num_tokens >= self.num_new
        if self.is_done:
            rest, answer = self.growing.finish()
            counts = num_prefix + len(self.prompt.ids), self.growing.num_tokens
            self.pieces.put_nowait(Piece(piece + rest, answer.finish_reason, *counts))
        elif piece:
            self.pieces.put_nowait(Piece(piece))

    def fail(self, error: Exception) -> None:
        """End it with a fault."""
        self.is_done = True
        self.pieces.put_nowait(error)


class Writer:
    """Answers conversations about pictures and sounds; arguments as in `Embedder`."""

    def __init__(self, model: AnsweringModel, engine: Engine, media: Media, limits: Limits, metrics: Metrics) -> None:
        import impresa.decoders.generation  # noqa: F401 - takes seconds, which the first request would wait for

        self._model, self._engine, self._media, self._limits, self._metrics = model, engine, media, limits, metrics
        self._sizes = metrics.batches.labels("chat")
        self.room = Room(limits.queue, metrics)
        self._waiting: list[_Request] = []
        self._more = asyncio.Event()
        self._groups = asyncio.Semaphore(_GROUPS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._with_system = lru_cache(_SYSTEMS)(model.chat.with_system)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Form batches."""
        task = asyncio.create_task(self._form())
        try:
            yield
        finally:
            for each in (task, *self._tasks):
                each.cancel()

    async def answer(self, form: ChatForm) -> AsyncIterator[Piece]:
        """The answer in pieces, the last of which says why it ends; a generator that is closed gives it up.

        Raises:
            ApiError: something cannot be read, or there is too much.
        """
        with self.room.taken(1):
            request = await self._request(form)
            self._waiting.append(request)
            self._more.set()
            try:
                while True:
                    piece = await request.pieces.get()
                    if isinstance(piece, Exception):
                        raise piece
                    yield piece
                    if piece.finish_reason is not None:
                        self._metrics.tokens.labels("read").inc(piece.num_read)
                        self._metrics.tokens.labels("written").inc(piece.num_written)
                        return
            finally:
                request.has_left = True
                if request in self._waiting:
                    self._waiting.remove(request)

    async def _request(self, form: ChatForm) -> _Request:
        form.check()
        said = conversation_of(form.messages)
        texts = [text for turn in said.turns for text in (turn.question, turn.answer)]
        words = [text_part(text, "messages") for text in (*texts, said.question, said.system) if text]
        check_amount([[*said.images, *said.sounds, *words]], self._limits)
        self._check_subject(said)
        defaults = self._model.generation
        num_new = form.num_new(defaults.max_new_tokens, self._model.max_len)
        reader = Reader(self._model.chat, form.stops(listed_names(defaults.stop)))
        prompt = await self._engine.read(self._prompt, said, num_new)
        images = await together(self._picture(part) for part in said.images)
        sounds = await together(self._sound(part) for part in said.sounds)
        subject = Subject(tuple(images), sounds[0] if sounds else None)
        growing = Growing(reader, prompt)
        return _Request(subject, prompt, growing, form.settings(defaults), num_new, PROGRESS.get() or Progress())

    def _check_subject(self, said: Conversation) -> None:
        known = self._model.preprocessing
        if not said.images and not said.sounds:
            raise bad("messages: there is neither a picture nor a sound to talk about; send one", "messages")
        if said.images and known.pictures is False:
            raise bad(f"{said.images[0].where}: this model has learned sounds alone", said.images[0].where)
        if said.sounds and known.audio is None:
            raise bad(f"{said.sounds[0].where}: this model has no audio encoder", said.sounds[0].where)
        most = self._model.max_images
        if len(said.images) > most or len(said.sounds) > 1:
            raise bad(f"messages: this model takes pictures up to {most} and one sound in a conversation", "messages")

    def _prompt(self, said: Conversation, num_new: int) -> Prompt:
        """The tokens of a conversation; its oldest turns are forgotten where it is too long, its question is not."""
        chat: ChatFormat = self._model.chat if said.system is None else self._with_system(said.system)
        try:
            prompt = chat.fitted_prompt(said.turns[-_MOST_TURNS:], said.question, self._model.max_len, num_new)
        except (ConfigError, DataError) as error:
            fault = "the conversation does not fit the model's chat format or its context"
            raise bad(f"messages: {fault}, {self._model.max_len} tokens", "messages") from error
        if prompt.num_cut:
            message = f"messages: the question and the answer have more than {self._model.max_len} tokens together"
            raise bad(message, "messages", "context_length_exceeded")
        return prompt

    async def _picture(self, part: Part) -> Named:
        content = await self._media.content(part)
        return Named(part.where, await self._engine.read(self._decoded_picture, part, content))

    def _decoded_picture(self, part: Part, content: bytes) -> Any:
        try:
            if self._model.tiles > 1:  # which tiles there are depends on its shape
                return load_image(content)
            return pixels_of([content], self._model.preprocessing.image)[0]
        except (DataError, ValueError, OSError) as error:
            raise unreadable_picture(part.where) from error

    async def _sound(self, part: Part) -> Named:
        content = await self._media.content(part)
        return Named(part.where, await self._engine.read(self._decoded_sound, part, content))

    def _decoded_sound(self, part: Part, content: bytes) -> Any:
        assert self._model.preprocessing.audio is not None
        try:
            return load_audio(content, self._model.preprocessing.audio.max_seconds)
        except (DataError, ValueError) as error:
            raise unreadable_sound(part.where) from error

    async def _form(self) -> None:
        """Start batches until this is cancelled."""
        while True:
            while not self._waiting:
                self._more.clear()
                await self._more.wait()
            await asyncio.sleep(self._limits.max_wait_ms / 1000)
            await self._groups.acquire()
            if group := self._take():
                task = asyncio.create_task(self._write(group))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                self._groups.release()

    def _take(self) -> list[_Request]:
        """Those that choose their tokens as the first that waits."""
        same = [request for request in self._waiting if request.settings == self._waiting[0].settings]
        group = same[: self._limits.batch_size]
        for request in group:
            self._waiting.remove(request)
            request.progress.begun = True
        return group

    async def _write(self, group: list[_Request]) -> None:
        self._sizes.observe(len(group))
        try:
            columns, num_prefix = await self._engine.compute(self._begin, group)
            while any(request.wants_more for request in group):
                column = await self._engine.compute(_next, columns)
                if column is None:
                    break
                for request, token, num in zip(group, column, num_prefix, strict=True):
                    if request.wants_more:
                        request.add(token, num)
            for request in group:
                if request.wants_more:
                    request.fail(RuntimeError("the model has written less than it was asked for"))
        except Exception as error:
            for request in group:
                if request.wants_more:
                    request.fail(error)
        finally:
            self._groups.release()

    @torch.inference_mode()
    def _begin(self, group: list[_Request]) -> tuple[Iterator[list[int]], list[int]]:
        """An iterator that writes a token of each at a time, and the number of tokens of each's pictures and sounds."""
        model = self._model
        batch = batch_of([request.subject for request in group], model.preprocessing, model.max_images, model.tiles)
        prefix = model.prefix(batch)
        longest = max(len(request.prompt.ids) for request in group)
        numbers = [longest - len(request.prompt.ids) for request in group]  # of the tokens on the left that are padding
        rows = [[model.chat.pad_id] * n + request.prompt.ids for n, request in zip(numbers, group, strict=True)]
        mask = torch.arange(longest)[None] >= torch.tensor(numbers)[:, None]
        columns = model.model.decoder.write(
            torch.tensor(rows, device=model.device),
            mask.to(model.device),
            prefix.tokens,
            prefix.mask,
            settings=replace(group[0].settings, max_new_tokens=max(request.num_new for request in group)),
            end_ids=model.chat.end_ids,
            pad_id=model.chat.pad_id,
            rows=[0] * len(group),  # each draws as if it were alone
        )
        return (column.tolist() for column in columns), prefix.mask.sum(dim=1).tolist()


def _next(columns: Iterator[list[int]]) -> list[int] | None:
    return next(columns, None)
