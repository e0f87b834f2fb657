"""An alignment model behind batches: inputs of requests in, their embeddings out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from impresa.data.image_files import open_image
from impresa.data.preprocessing import Tokenizer
from impresa.errors import DataError
from impresa.serving.batching import Batcher
from impresa.serving.engine import Engine, Room
from impresa.serving.faults import bad
from impresa.serving.media import Media, unreadable_picture, unreadable_sound
from impresa.serving.metrics import Metrics
from impresa.serving.parts import Input, Part, check_amount, check_tokens
from impresa.serving.settings import Limits
from impresa.tasks.alignment.embedder import EmbeddingModel
from impresa.tasks.inputs import features_of, pixels_of

T = TypeVar("T")
Tokens = NDArray[np.int32]
_OF_OTHERS = "send the text itself (langchain's OpenAIEmbeddings does with check_embedding_ctx_length=False)"
"""The fix for clients that send the tokens of OpenAI's models, which would stand for other words here."""
_SHORT = 10_000
"""Characters whose tokens are found at once, without another thread."""
FUSED = "image+audio"


@dataclass(frozen=True)
class Embedded:
    """The embeddings of a request, and what was read for them."""

    vectors: Tensor
    """(N, E) float32 on the CPU; of length one where an input has several parts, else as the model gives them."""
    num_tokens: int = 0
    num_images: int = 0
    num_pixels: int = 0
    """Of the pictures as they were sent."""

    def cut(self, dim: int | None, normalize: bool = True) -> Tensor:
        """(N, dim): the first numbers of each embedding, brought to length one by themselves unless told otherwise."""
        vectors = self.vectors if dim is None else self.vectors[:, :dim]
        return F.normalize(vectors, dim=-1) if normalize else vectors


@dataclass(frozen=True)
class _Read:
    """A part as the towers take it."""

    kind: str
    value: Any
    """Token ids; pixels (3, S, S); features (F, M) and their mask (F,)."""
    num_pixels: int = 0


class Embedder:
    """Embeds inputs of all modalities that the model has.

    An input of several parts has one embedding: the mean of theirs, each of length one, of which that of an image and a
    sound together is one where the model has learned it.

    Args:
        model: the model.
        engine: has the threads.
        media: reads pictures and sounds.
        limits: of requests and batches.
        metrics: where numbers are told.
    """

    def __init__(self, model: EmbeddingModel, engine: Engine, media: Media, limits: Limits, metrics: Metrics) -> None:
        self._model, self._engine, self._media, self._limits, self._metrics = model, engine, media, limits, metrics
        self.room = Room(limits.queue, metrics)
        kinds: dict[str, Callable[[list[Any]], Tensor]] = {"text": self._texts, "image": self._images}
        kinds |= {"audio": self._sounds, FUSED: self._pairs}
        self._batchers = {kind: Batcher(kind, work, engine, limits, metrics) for kind, work in kinds.items()}

    @property
    def width(self) -> int:
        """E, the width of the embeddings."""
        return self._model.embed_dim

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Form batches."""
        tasks = [asyncio.create_task(batcher.run()) for batcher in self._batchers.values()]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()

    async def embed(self, inputs: list[Input], *, may_cut: bool = True) -> Embedded:
        """The embeddings of inputs, in their order.

        Args:
            inputs: each has a part at least.
            may_cut: cut texts that are longer than the model's context; otherwise they are refused.

        Raises:
            ApiError: an input cannot be read, or there is too much.
        """
        check_amount(inputs, self._limits)
        parts = [part for each in inputs for part in each]
        with self.room.taken(len(parts)):
            read = await self._read(parts, may_cut)
            num_tokens = sum(len(one.value) for one in read if one.kind == "text")
            self._metrics.tokens.labels("read").inc(num_tokens)
            sizes, rest = map(len, inputs), iter(read)
            grouped = [[next(rest) for _ in range(size)] for size in sizes]
            vectors = await self._vectors([self._fused(group) for group in grouped])
        seen = [one for one in read if one.kind == "image"]
        return Embedded(vectors, num_tokens, len(seen), sum(one.num_pixels for one in seen))

    async def _vectors(self, inputs: list[list[_Read]]) -> Tensor:
        """(N, E), each kind of input in batches of its own."""
        places: dict[str, list[tuple[int, Any]]] = {}
        for number, each in enumerate(inputs):
            for one in each:
                places.setdefault(one.kind, []).append((number, one.value))
        found = await together(self._batchers[kind].results([v for _, v in items]) for kind, items in places.items())
        vectors: list[list[Tensor]] = [[] for _ in inputs]
        for items, outputs in zip(places.values(), found, strict=True):
            for (number, _), vector in zip(items, outputs, strict=True):
                vectors[number].append(vector)
        return torch.stack([_joined(each) for each in vectors])

    def _fused(self, parts: list[_Read]) -> list[_Read]:
        """An image and a sound as a single part, where the model embeds them together."""
        seen, heard = ([part for part in parts if part.kind == kind] for kind in ("image", "audio"))
        if self._model.model.fusion is None or len(seen) != 1 or len(heard) != 1:
            return parts
        rest = [part for part in parts if part.kind == "text"]
        return [_Read(FUSED, (seen[0].value, *heard[0].value)), *rest]

    async def _read(self, parts: list[Part], may_cut: bool) -> list[_Read]:
        """Parts as the towers take them."""
        if any(part.kind == "audio" for part in parts) and self._model.preprocessing.audio is None:
            where = next(part.where for part in parts if part.kind == "audio")
            raise bad(f"{where}: this model has no audio encoder; leave sounds out", where)
        texts = [(number, part) for number, part in enumerate(parts) if part.kind in ("text", "tokens")]
        rows = await self._token_rows([part for _, part in texts], may_cut)
        found = {number: _Read("text", row) for (number, _), row in zip(texts, rows, strict=True)}
        files = [(number, part) for number, part in enumerate(parts) if number not in found]
        for (number, _), one in zip(files, await together(self._file(part) for _, part in files), strict=True):
            found[number] = one
        return [found[number] for number in range(len(parts))]

    async def _token_rows(self, parts: list[Part], may_cut: bool) -> list[Tokens]:
        if not parts:
            return []
        short = sum(len(part.value) for part in parts) <= _SHORT
        rows = self._rows(parts, may_cut) if short else await self._engine.read(self._rows, parts, may_cut)
        check_tokens(sum(map(len, rows)), self._limits)
        return rows

    def _rows(self, parts: list[Part], may_cut: bool) -> list[Tokens]:
        tokenizer = self._model.preprocessing.texts
        for part in parts:
            if part.kind == "tokens" and (most := max(part.value)) >= tokenizer.vocab_size:
                fault = f"the model's tokenizer has no token {most}, only those below {tokenizer.vocab_size}"
                raise bad(f"{part.where}: {fault}; {_OF_OTHERS}", part.where)
        texts = [part.value if part.kind == "text" else tokenizer.decode(part.value) for part in parts]
        if not may_cut:
            for part, text in zip(parts, texts, strict=True):
                if tokenizer.num_cut([text]):
                    message = f"{part.where}: is longer than {tokenizer.max_len} tokens, and may not be cut"
                    raise bad(message, part.where, "context_length_exceeded")
        rows = tokenizer.rows(texts)
        for part, row in zip(parts, rows, strict=True):
            if part.kind == "tokens" and not _are_of(tokenizer, part.value, row.tolist()):
                fault = "are not the tokens that the model's tokenizer makes of their text"
                raise bad(f"{part.where}: {fault}; {_OF_OTHERS}", part.where)
        return rows

    async def _file(self, part: Part) -> _Read:
        content = await self._media.content(part)
        return await self._engine.read(self._picture if part.kind == "image" else self._sound, part, content)

    def _picture(self, part: Part, content: bytes) -> _Read:
        try:
            with open_image(BytesIO(content)) as header:
                num_pixels = header.width * header.height
            pixels = pixels_of([content], self._model.preprocessing.image)[0]
        except (DataError, ValueError, OSError) as error:
            raise unreadable_picture(part.where) from error
        return _Read("image", pixels, num_pixels)

    def _sound(self, part: Part, content: bytes) -> _Read:
        assert self._model.preprocessing.audio is not None
        try:
            features, mask = features_of([content], self._model.preprocessing.audio)
        except (DataError, ValueError) as error:
            raise unreadable_sound(part.where) from error
        return _Read("audio", (features[0], mask[0]))

    @torch.inference_mode()
    def _texts(self, rows: list[Tokens]) -> Tensor:
        ids, mask = self._model.preprocessing.texts.padded(rows)
        return self._on_cpu(self._model.model.embed_text(*self._there(ids, mask)))

    @torch.inference_mode()
    def _images(self, pixels: list[Tensor]) -> Tensor:
        return self._on_cpu(self._model.model.embed_image(*self._there(torch.stack(pixels))))

    @torch.inference_mode()
    def _sounds(self, sounds: list[tuple[Tensor, Tensor]]) -> Tensor:
        return self._on_cpu(self._model.model.embed_audio(*self._there(*map(_padded, zip(*sounds, strict=True)))))

    @torch.inference_mode()
    def _pairs(self, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        pixels, features, masks = zip(*pairs, strict=True)
        given = self._there(torch.stack(pixels), _padded(features), _padded(masks))
        return self._on_cpu(self._model.model.embed_image_audio(*given))

    def _there(self, *tensors: Tensor) -> list[Tensor]:
        return [tensor.to(self._model.device) for tensor in tensors]

    @staticmethod
    def _on_cpu(vectors: Tensor) -> Tensor:
        return vectors.float().cpu()


async def together(tasks: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all, in order; with the first fault, or when this is cancelled, the others are given up."""
    running = [asyncio.ensure_future(task) for task in tasks]
    try:
        return list(await asyncio.gather(*running))
    finally:
        for task in running:
            task.cancel()


def _are_of(tokenizer: Tokenizer, ids: list[int], row: list[int]) -> bool:
    """True if the row of a text has the ids that a client sent for it, up to where it was cut; start and end token
    aside, which clients may leave out."""
    frame = set(tokenizer.rows([""])[0].tolist())
    sent, own = ([id for id in each if id not in frame] for each in (ids, row))
    return sent[: len(own)] == own and (len(sent) == len(own) or len(row) >= tokenizer.max_len)


def _padded(tensors: Iterable[Tensor]) -> Tensor:
    return pad_sequence(list(tensors), batch_first=True)


def _joined(vectors: list[Tensor]) -> Tensor:
    if len(vectors) == 1:
        return vectors[0]
    return F.normalize(F.normalize(torch.stack(vectors), dim=-1).mean(dim=0), dim=-1)
