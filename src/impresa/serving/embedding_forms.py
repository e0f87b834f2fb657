"""The forms in which embeddings are asked for, told apart by their shape, and each API's own form of the answer.

OpenAI's `input`, vLLM's `messages`, infinity's `modality`, Jina's list of objects, Voyage's `inputs`, or `input` with
options of its own, and Cohere's `texts`, `images` or `inputs`. Fields that a form does not know are left alone; those
that would give other embeddings than ours are refused.
"""

from __future__ import annotations

import base64
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, get_args
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from impresa.serving.embedder import Embedded
from impresa.serving.faults import bad
from impresa.serving.parts import Input, content_parts, media_part, text_part, tokens_part
from impresa.tasks.quantization import quantized, quantized_alone

Answer = dict[str, Any]
Precision = Literal["float", "int8", "uint8", "binary", "ubinary"]
Encoding = Literal[Precision, "base64"]
ENCODINGS = get_args(Encoding)
_PIXELS_PER_TOKEN = 560
"""As Voyage counts."""


class Form(BaseModel):
    """A request; fields are those of its API."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())
    model: str | None = None

    @abstractmethod
    def inputs(self) -> list[Input]:
        """The inputs to embed. Raises `ApiError`."""

    @abstractmethod
    def answer(self, done: Embedded, model: str) -> Answer:
        """The answer, as the form's API gives it."""

    def width(self) -> tuple[str, int | None]:
        """The field that says how many numbers of each embedding are wanted, and its value."""
        return "dimensions", getattr(self, "dimensions", None)

    def may_cut(self) -> bool:
        """Cut texts that are too long, rather than refuse them."""
        return True


class OpenAIForm(Form):
    """`input` is a string, token ids, or a list of one of these."""

    input: Any
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None

    def inputs(self) -> list[Input]:
        value = self.input
        if isinstance(value, list) and not value:
            raise bad("input: is an empty list; give a text", "input")
        if isinstance(value, list) and not isinstance(value[0], int):
            make = tokens_part if isinstance(value[0], list) else text_part
            return [[make(item, f"input[{number}]")] for number, item in enumerate(value)]
        return [[tokens_part(value, "input") if isinstance(value, list) else text_part(value, "input")]]

    def answer(self, done: Embedded, model: str) -> Answer:
        rows = encoded(done.cut(self.width()[1]), self.encoding_format or "float")
        return _listed(rows, model, {"prompt_tokens": done.num_tokens, "total_tokens": done.num_tokens})


class InfinityForm(OpenAIForm):
    """`input` holds texts, or URLs of what `modality` says."""

    modality: Literal["text", "image", "audio"]

    @field_validator("model", "dimensions")
    @classmethod
    def _unless_default(cls, value: Any) -> Any:
        """Nothing of what infinity's own client writes where its user has named nothing."""
        return None if value in ("default/not-specified", 0) else value

    def inputs(self) -> list[Input]:
        if self.modality == "text":
            return super().inputs()
        values = self.input if isinstance(self.input, list) else [self.input]
        return [[media_part(self.modality, value, f"input[{number}]")] for number, value in enumerate(values)]


class VllmForm(OpenAIForm):
    """`messages` are one input."""

    input: Any = None
    messages: list[Any]
    embed_dtype: Literal["float32"] | None = None

    def inputs(self) -> list[Input]:
        if self.input is not None:
            raise bad("input: contradicts messages; give one of them", "input")
        parts: Input = []
        for number, message in enumerate(self.messages):
            where = f"messages[{number}]"
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise bad(f"{where}: must be an object with role and content", where)
            parts += content_parts(message.get("content"), f"{where}.content", may_be_empty=True)
        if not parts:
            raise bad("messages: hold nothing to embed; give a text, a picture or a sound", "messages")
        return [parts]


class JinaForm(Form):
    """`input` holds texts, or objects with one of `text`, `image` and `audio`; of older models with `url` or `bytes`,
    which are images."""

    input: Any
    dimensions: int | None = None
    normalized: bool = True
    embedding_type: Encoding | list[Any] = "float"
    truncate: bool = True
    late_chunking: Literal[False] | None = None
    return_multivector: Literal[False] | None = None

    def inputs(self) -> list[Input]:
        values = self.input if isinstance(self.input, list) else [self.input]
        return [[_jina_part(value, f"input[{number}]")] for number, value in enumerate(values)]

    def may_cut(self) -> bool:
        return self.truncate

    def answer(self, done: Embedded, model: str) -> Answer:
        kinds = self.embedding_type if isinstance(self.embedding_type, list) else [self.embedding_type]
        if len(kinds) != 1 or kinds[0] not in ENCODINGS:
            raise bad(f"embedding_type: must be one of {', '.join(ENCODINGS)}", "embedding_type")
        rows = encoded(done.cut(self.dimensions, self.normalized), kinds[0])
        return _listed(rows, model, {"prompt_tokens": done.num_tokens, "total_tokens": done.num_tokens})


def _jina_part(value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        return text_part(value, where)
    given = [kind for kind in ("text", "image", "audio", "url", "bytes") if value.get(kind) is not None]
    if len(given) != 1:
        raise bad(f"{where}: must have one of text, image and audio", where)
    kind = given[0]
    where = f"{where}.{kind}"
    if kind == "text":
        return text_part(value[kind], where)
    return media_part("audio" if kind == "audio" else "image", value[kind], where)


class VoyageTextForm(OpenAIForm):
    """`input` is a text or a list of them, with options that OpenAI has not."""

    truncation: bool = True
    output_dimension: int | None = None
    output_dtype: Precision | None = None

    def width(self) -> tuple[str, int | None]:
        return "output_dimension", self.output_dimension

    def may_cut(self) -> bool:
        return self.truncation

    def answer(self, done: Embedded, model: str) -> Answer:
        is_packed = self.encoding_format == "base64"
        rows = encoded(done.cut(self.output_dimension), self.output_dtype or "float", packed=is_packed)
        return _listed(rows, model, {"prompt_tokens": done.num_tokens, "total_tokens": done.num_tokens})


class VoyageForm(Form):
    """`inputs` holds objects whose `content` is a list of parts, one input each."""

    inputs_: list[Any] = Field(alias="inputs")
    truncation: bool = True
    output_dimension: int | None = None
    output_dtype: Precision | None = None
    output_encoding: Literal["base64"] | None = None
    encoding_format: Literal["float", "base64"] | None = None

    def inputs(self) -> list[Input]:
        return _contents(self.inputs_)

    def width(self) -> tuple[str, int | None]:
        return "output_dimension", self.output_dimension

    def may_cut(self) -> bool:
        return self.truncation

    def answer(self, done: Embedded, model: str) -> Answer:
        is_packed = "base64" in (self.output_encoding, self.encoding_format)
        total = done.num_tokens + done.num_pixels // _PIXELS_PER_TOKEN
        usage = {"text_tokens": done.num_tokens, "image_pixels": done.num_pixels, "video_pixels": 0}
        rows = encoded(done.cut(self.output_dimension), self.output_dtype or "float", packed=is_packed)
        return _listed(rows, model, usage | {"total_tokens": total})


class CohereForm(Form):
    """One of `texts`, `images` and `inputs`."""

    texts: list[Any] | None = None
    images: list[Any] | None = None
    inputs_: list[Any] | None = Field(default=None, alias="inputs")
    output_dimension: int | None = None
    embedding_types: list[Encoding] | None = None
    max_tokens: None = None
    truncate: Literal["NONE", "END"] = "END"

    def inputs(self) -> list[Input]:
        given = [values for values in (self.texts, self.images, self.inputs_) if values is not None]
        if len(given) != 1:
            raise bad("give one of texts, images and inputs", "texts")
        if self.texts is not None:
            return [[text_part(text, f"texts[{number}]")] for number, text in enumerate(self.texts)]
        if self.images is not None:
            return [[media_part("image", image, f"images[{number}]")] for number, image in enumerate(self.images)]
        return _contents(given[0])

    def width(self) -> tuple[str, int | None]:
        return "output_dimension", self.output_dimension

    def may_cut(self) -> bool:
        return self.truncate == "END"

    def answer(self, done: Embedded, model: str) -> Answer:
        vectors = done.cut(self.output_dimension)
        kinds: list[Encoding] = self.embedding_types or ["float"]
        units = {"input_tokens": done.num_tokens, "images": done.num_images}
        return {
            "id": str(uuid4()),
            "embeddings": {kind: encoded(vectors, kind) for kind in dict.fromkeys(kinds)},
            "texts": self.texts or [],
            "response_type": "embeddings_by_type",
            "meta": {"api_version": {"version": "2"}, "billed_units": units},
        }


class CohereV1Form(CohereForm):
    """The same for Cohere's older client, and those that build on it: plain numbers unless types are named."""

    def answer(self, done: Embedded, model: str) -> Answer:
        found = super().answer(done, model)
        if self.embedding_types:
            return found
        return {**found, "embeddings": found["embeddings"]["float"], "response_type": "embeddings_floats"}


def _contents(values: list[Any]) -> list[Input]:
    found: list[Input] = []
    for number, value in enumerate(values):
        where = f"inputs[{number}]"
        if not isinstance(value, Mapping):
            raise bad(f"{where}: must be an object with content", where)
        found.append(content_parts(value.get("content"), f"{where}.content"))
    return found


_JINA_ONLY = ("embedding_type", "normalized", "late_chunking", "return_multivector")
_VOYAGE_ONLY = ("truncation", "output_dimension", "output_dtype")
"""Fields that tell one form of texts from another."""


def form_of(body: Mapping[str, Any]) -> type[Form]:
    """The form that a body for `/v1/embeddings` has."""
    value = body.get("input")
    if "messages" in body:
        return VllmForm
    if "inputs" in body:
        return VoyageForm
    if "modality" in body:
        return InfinityForm
    has_objects = isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(v, Mapping) for v in value))
    if has_objects or not body.keys().isdisjoint(_JINA_ONLY):
        return JinaForm
    if not body.keys().isdisjoint(_VOYAGE_ONLY):
        return VoyageTextForm
    return OpenAIForm


def _listed(rows: list[Any], model: str, usage: Mapping[str, int]) -> Answer:
    data = [{"object": "embedding", "index": number, "embedding": row} for number, row in enumerate(rows)]
    return {"object": "list", "data": data, "model": model, "usage": usage}


def encoded(vectors: Tensor, kind: Encoding, *, packed: bool = False) -> list[Any]:
    """Embeddings (N, E) as an answer holds them: the numbers of each, or base64 of their bytes, which is `packed`, or
    `base64` for float32. Floats are little-endian."""
    if kind == "base64":
        return encoded(vectors, "float", packed=True)
    if kind in ("binary", "ubinary"):
        vectors = quantized(vectors, kind)
    elif kind in ("int8", "uint8"):
        vectors = quantized_alone(vectors, kind)
    if not packed:
        return list(vectors.tolist())
    array = vectors.numpy()
    return [base64.b64encode(row.tobytes()).decode() for row in (array.astype("<f4") if kind == "float" else array)]
