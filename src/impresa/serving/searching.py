"""Searching for the requests of a server: what a query is made of, and what is answered."""

from __future__ import annotations

import base64
import logging
import re
import time
from pathlib import PurePosixPath
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from impresa.data.disk import MAX_BYTES, read_regular
from impresa.errors import CheckpointError, ConfigError
from impresa.search.index import open_index
from impresa.search.scan import recall_of
from impresa.search.snapshot import Result, Snapshot
from impresa.search.store import without_texts
from impresa.serving.faults import ApiError, bad
from impresa.serving.media import sound_type
from impresa.tasks.alignment.embedder import EmbeddingModel

if TYPE_CHECKING:
    from impresa.tasks.answering.answerer import AnsweringModel

MOST_RESULTS = 200
_MOST_EXAMPLES, _MOST_CANDIDATES, _MOST_NUMBERS = 16, 100_000, 1 << 16
_LONGEST_TEXT, _LONGEST_ID, _LONGEST_WHERE = 10_000, 200, 1_000
_SMALLEST_DIM = 8
_BEFORE_BRACKET = re.compile(r"(\w+)\s*\(")
_FUNCTIONS = ("lower", "upper", "length", "abs", "contains", "starts_with", "ends_with", "regexp_like")
"""Of conditions: others could take all memory (repeat), or tell in an error what no answer has (cast)."""
_OPERATORS = ("and", "or", "not", "in", "like", "ilike", "between")
_REFRESH_S = 2.0
"""So long after a look for a newer state of the index there is no other."""

Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, max_length=_LONGEST_TEXT)]
Id = Annotated[str, Field(max_length=_LONGEST_ID)]
Examples = Annotated[list["Example"], Field(max_length=_MOST_EXAMPLES)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", populate_by_name=True)


class Example(_Strict):
    """One thing that is searched for: exactly one of text, image, sound, id and vector."""

    text: Text | None = None
    image: str | None = None
    """A data URL."""
    sound: str | None = None
    """A data URL."""
    id: Id | None = None
    """Of a result."""
    vector: Annotated[list[Number], Field(max_length=_MOST_NUMBERS)] | None = None
    """As `with_vector` gives it."""
    weight: Annotated[float, Field(gt=0, le=1_000, allow_inf_nan=False)] = 1.0

    @model_validator(mode="after")
    def _is_one(self) -> Example:
        if sum(value is not None for value in (self.text, self.image, self.sound, self.id, self.vector)) != 1:
            raise ValueError("give exactly one of text, image, sound, id and vector")
        return self


class SearchForm(_Strict):
    """The examples to search for: `query`, or one of the fields that stand for a single example."""

    query: Examples = []
    without: Annotated[Examples, Field(alias="not")] = []
    """Examples that the results must not be like."""
    text: Text | None = None
    image: str | None = None
    sound: str | None = None
    id: Id | None = None
    top: Annotated[int, Field(ge=1, le=MOST_RESULTS)] = 20
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Length of the prefix that makes the shortlist; None is what `impresa search-bench` has found."""
    shortlist: Annotated[int, Field(ge=1, le=_MOST_CANDIDATES)] | None = None
    """Candidates that the prefix proposes; all dimensions rank them anew."""
    where: Annotated[str, Field(max_length=_LONGEST_WHERE)] | None = None
    """A condition in SQL."""
    compare: bool = False
    """Search by all dimensions too, and say how many of its results were found."""
    with_vector: bool = False
    """Answer with the vector of the query."""
    thumbnails: bool = True

    def wanted(self) -> list[tuple[str, Example]]:
        """The examples to search for, each with its field."""
        fields = {name: getattr(self, name) for name in ("text", "image", "sound", "id")}
        alone = [("query", Example(**{name: value})) for name, value in fields.items() if value is not None]
        return [*((f"query.{number}", example) for number, example in enumerate(self.query)), *alone]

    def unwanted(self) -> list[tuple[str, Example]]:
        """Examples that the results must not be like, each with its field."""
        return [(f"not.{number}", example) for number, example in enumerate(self.without)]


class Searched:
    """The index of a server, which follows its updates, and the model that embeds queries for it.

    Args:
        path: of the index.
        model: of the server; one that answers embeds nothing, and the index loads its own run beside it.

    Raises:
        CheckpointError: there is no index, or it is of another run.
    """

    def __init__(self, path: str, model: EmbeddingModel | AnsweringModel) -> None:
        if isinstance(model, EmbeddingModel):
            self._index = open_index(path, run=model.run_dir)
            self._index.use(model)
        else:
            self._index = open_index(path)
        self.model = self._index.model
        self._looking, self._looked, self._told = Lock(), time.monotonic(), ""
        if self._index.state.is_scanned:
            self._index.vectors()  # now, and not while the first one waits

    def newest(self) -> Snapshot:
        """The state that was published last, or a moment before."""
        is_due = time.monotonic() - self._looked > _REFRESH_S
        if is_due and self._looking.acquire(blocking=False):  # others go on with the state that is open
            try:
                self._index.refresh()
            except CheckpointError as error:
                if str(error) != self._told:
                    self._told = str(error)
                    logging.getLogger(__name__).warning("%s; the state that was open stays in use", error)
            finally:
                self._looked = time.monotonic()
                self._looking.release()
        return self._index.state


def answer(state: Snapshot, wanted: Tensor, form: SearchForm) -> dict[str, Any]:
    """The results as JSON, with the time that the scan took.

    Args:
        state: of the index.
        wanted: (E,) of length one.
        form: how it is searched.

    Raises:
        ConfigError: the condition is none.
        ApiError: there are fewer dimensions.
    """
    _check_where(form.where)
    width = state.about.width
    if form.dimensions is not None and form.dimensions > width:
        fault = f"dimensions: {form.dimensions} is not within 1 to {width}, the vectors' width; choose one"
        raise bad(fault, "dimensions")
    options: dict[str, Any] = {"top": form.top, "where": form.where}
    scores, rows, seconds = _timed(state, wanted, dim=form.dimensions, shortlist=form.shortlist, **options)
    found = state.results(scores, rows)
    told: dict[str, Any] = {
        "object": "list",
        "results": [plain(result, thumbnails=form.thumbnails) for result in found],
        "dimensions": form.dimensions,
        "milliseconds": 1e3 * seconds,
        "recall": None,
        "exact_milliseconds": None,
    }
    if form.compare and state.is_scanned:
        exact, _, exact_s = _timed(state, wanted, dim=width, **options)
        told |= {"recall": recall_of(scores[None], exact[None]), "exact_milliseconds": 1e3 * exact_s}
    return told | ({"vector": wanted.tolist()} if form.with_vector else {})


def _timed(state: Snapshot, wanted: Tensor, **options: Any) -> tuple[Tensor, Tensor, float]:
    start = time.perf_counter()
    scores, rows = state.search_vectors(wanted[None], **options)
    return scores[0], rows[0], time.perf_counter() - start


def _check_where(where: str | None) -> None:
    """Refuse conditions on sources, which are folders of this machine whose names nobody may guess letter by letter,
    and those that call what is not known to be harmless. Comments, which could hide both, are refused by the index."""
    rest = without_texts(where or "")
    if re.search(r"\bsource\b", rest, re.IGNORECASE):
        raise ConfigError("where: the column source is not for others to see; use another one")
    called = ["::"] * ("::" in rest) + _BEFORE_BRACKET.findall(rest)
    if unknown := [name for name in called if name.lower() not in (*_FUNCTIONS, *_OPERATORS)]:
        raise ConfigError(f"where: {unknown[0]} cannot be used here; there are {', '.join(_FUNCTIONS)}")


def plain(result: Result, *, thumbnails: bool) -> dict[str, Any]:
    """A result as JSON, without anything of this machine's folders."""
    shown: dict[str, Any] = {"rank": result.rank, "score": result.score, "id": result.key, "name": _name_of(result)}
    shown |= {"modality": result.modality, "caption": result.caption, "label": result.label}
    if thumbnails:
        picture = result.thumbnail and base64.b64encode(result.thumbnail).decode()
        shown["thumbnail"] = picture and f"data:image/jpeg;base64,{picture}"
    if result.modality == "audio" and result.path is not None:
        shown["sound"] = f"sounds/{result.key}"
    return shown


def sound_of(state: Snapshot, key: str) -> tuple[bytes, str]:
    """The file of a row that is a sound, and its type. Raises `ApiError` where there is none."""
    gone = ApiError(404, "the index has no sound of this id, or its file is gone", "id", "unknown_id")
    path = state.sound_file(key)
    try:
        content = read_regular(path, MAX_BYTES) if path is not None else b""
    except (OSError, ValueError) as error:
        raise gone from error
    if (kind := sound_type(content)) is None:  # whatever an index says, no other file is given away
        raise gone
    return content, kind


def _name_of(result: Result) -> str:
    """The file within its source, else the sample's name; of a place outside only the last part."""
    name = PurePosixPath(result.path or result.id)
    return name.name if name.is_absolute() or ".." in name.parts else str(name)


def dimensions_of(state: Snapshot) -> list[int]:
    """Dimensions to choose among, ascending: those that were trained, else halves of the width."""
    about = state.about
    halves = (about.width >> times for times in range(1, 20))
    return sorted({about.width, *(about.dims or (dim for dim in halves if dim >= _SMALLEST_DIM))})
