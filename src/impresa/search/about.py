"""What an index is of: the run that embeds, proved by checksums and golden vectors, and how it is searched."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar
from uuid import uuid4

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch.nn import functional as F

from impresa.config.encoder import Modality
from impresa.config.paths import looked_in
from impresa.config.runs import check_embeds
from impresa.errors import CheckpointError
from impresa.json_files import first_fault
from impresa.run_dir.golden import Golden
from impresa.run_dir.integrity import SMALLEST_GOLDEN_COSINE
from impresa.run_dir.layout import GOLDEN, PREPROCESSING, TOKENIZER
from impresa.run_dir.load import read_run_config
from impresa.run_dir.manifest import checksums

if TYPE_CHECKING:
    from impresa.tasks.alignment.embedder import EmbeddingModel

FORMAT = 1
Width = Annotated[int, Field(ge=1, le=1 << 20)]


@dataclass(frozen=True)
class Funnel:
    """A search by prefixes: the nearest by the first numbers are ranked anew by all of them."""

    dim: Width
    """Numbers of the prefix."""
    shortlist: Annotated[int, Field(ge=1, le=1 << 20)]
    """Candidates of each query that are ranked anew."""


@dataclass(frozen=True)
class About:
    """The description of an index, which lies beside its rows."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")
    format: Annotated[int, Field(ge=1, le=1_000_000)]
    run: str
    """Path of the run in full, as it was when the index was made."""
    name: str
    """Of the run's config."""
    weights: str
    """Digest of the weights, and of the pretrained parts' architectures."""
    preprocessing: str
    """Digest of the transforms of images and sounds, and of the tokenizer."""
    width: Width
    """E, the width of the vectors."""
    dims: Annotated[tuple[Width, ...], Field(max_length=1_000)]
    """Prefix lengths that the run has trained, descending."""
    prefix_dim: Width | None
    """Width of the column of prefixes; None without Matryoshka."""
    modalities: Annotated[tuple[Modality, ...], Field(max_length=3)]
    """The parts of the data that have rows."""
    golden: Annotated[list[Annotated[list[float], Field(max_length=1 << 20)]], Field(max_length=10_000)] = field(
        default_factory=list
    )
    """Vectors of the run's golden inputs, as the model gave them when the index was made."""
    funnel: Funnel | None = None
    """Found by `impresa search-bench`; None for the usual one."""
    made: Annotated[str, Field(max_length=64)] = ""
    """Tells apart what was made at one place at two times."""
    exact: bool = False
    """`impresa search-bench` has found that nothing cheaper than the exact search is good enough."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def about_run(run_dir: Path, modalities: tuple[Modality, ...]) -> About:
    """The description of an index of a finished run, without golden vectors; nothing is loaded.

    Raises:
        CheckpointError: the folder is no finished run of an alignment.
    """
    config = read_run_config(run_dir)
    check_embeds(run_dir, config)
    weights, preprocessing = digests(run_dir)
    width = config.vision_encoder.embed_dim
    is_trained = config.vision_encoder.use_mrl and config.losses.mrl_weight > 0
    trained = {dim for dim in config.vision_encoder.mrl_dimensions if dim < width} if is_trained else set()
    dims = tuple(sorted(trained, reverse=True))
    small = [dim for dim in dims if 4 * dim <= width]
    prefix = small[0] if small else dims[-1] if dims else None
    where, name = str(run_dir.resolve()), config.name
    return About(FORMAT, where, name, weights, preprocessing, width, dims, prefix, modalities, made=uuid4().hex)


def digests(run_dir: Path) -> tuple[str, str]:
    """Digests of a run's weights and of its preprocessing, from its checksums."""
    files = checksums(run_dir)
    of_inputs = {name for name in files if name == PREPROCESSING or name.startswith(f"{TOKENIZER}/")}
    parts = [sorted(of_inputs), sorted(files.keys() - of_inputs - {GOLDEN})]
    inputs, weights = (
        sha256(json.dumps([(name, files[name]) for name in part]).encode()).hexdigest() for part in parts
    )
    return weights, inputs


def read_about(index: str, text: str) -> About:
    """The description that an index holds.

    Raises:
        CheckpointError: it is damaged, or of a later format.
    """
    try:
        about = TypeAdapter(About).validate_json(text, strict=True)
    except ValidationError as error:
        fault = f"its description is damaged ({first_fault(error)})"
        raise CheckpointError(f"{index}: {fault}; make the index anew with `impresa index`") from error
    if about.format != FORMAT:
        raise CheckpointError(f"{index}: has format {about.format}, this version reads {FORMAT}; upgrade impresa")
    return about


def check_run(index: str, about: About, run_dir: Path) -> None:
    """Refuse a run that is not the one an index was made with.

    Raises:
        CheckpointError: names what differs, and the fix.
    """
    if not run_dir.is_dir():
        fix = f"name its place with --run, or for good by `impresa index RUN --out {index}`"
        if run_dir.resolve() != Path(about.run):
            fix = f"give the place of the run that {index} was made with ({about.name}, {about.run})"
            raise CheckpointError(f"{run_dir}: no such folder; {fix}{looked_in(run_dir)}")
        raise CheckpointError(f"{index}: was made with {run_dir}, which is gone; {fix}")
    weights, preprocessing = digests(run_dir)
    if weights != about.weights:
        fix = f"use that run, or make another index with `impresa index {run_dir} SOURCE --out OTHER`"
        raise CheckpointError(f"{index}: is of another model ({about.name}, {about.run}), not of {run_dir}; {fix}")
    if preprocessing != about.preprocessing:
        fix = "use the run as it was, or make another index with --out OTHER"
        raise CheckpointError(f"{index}: was made with another preprocessing than {run_dir} has now; {fix}")


def golden_vectors(model: EmbeddingModel) -> list[list[float]]:
    """What a model gives for the golden inputs of its run."""
    assert model.run_dir is not None
    pairs = model.golden_pairs(Golden.read(model.run_dir / GOLDEN))
    return [row for now, _ in pairs for row in now.tolist()]


def check_golden_vectors(index: str, about: About, model: EmbeddingModel) -> None:
    """Refuse a model that gives other vectors for the run's golden inputs than it did when the index was made.

    Raises:
        CheckpointError: a cosine is below 0.999.
    """
    now, then = golden_vectors(model), about.golden
    fits = [len(row) for row in now] == [len(row) for row in then]
    worst = _worst_cosine(now, then) if fits and now else 0.0
    if not worst >= SMALLEST_GOLDEN_COSINE:
        fault = f"the model gives other vectors here than when the index was made (cosine {worst:.4f})"
        raise CheckpointError(f"{index}: {fault}; use the versions of then, or make the index anew")


def _worst_cosine(rows: list[list[float]], others: list[list[float]]) -> float:
    a, b = (torch.tensor(numbers, dtype=torch.float32, device="cpu") for numbers in (rows, others))
    return F.cosine_similarity(a, b).min().item()
