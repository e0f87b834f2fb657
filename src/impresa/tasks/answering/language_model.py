"""The language model that a run stands on: its identity where the run does not store it, else its architecture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, StringConstraints

from impresa.config.decoder import DecoderConfig
from impresa.errors import CheckpointError
from impresa.files import write_atomic
from impresa.hub import digest, is_folder, size_of_weights
from impresa.json_files import read_json
from impresa.run_dir.layout import BACKBONES

PART = "decoder"
LANGUAGE_MODEL = f"{BACKBONES}/{PART}"
"""Folder of a run that names its language model, and holds its architecture if all of it was trained."""
IDENTITY = "identity.json"
_KEY = "decoder.model"
_COMMIT = "commit "
Digest = Annotated[str, StringConstraints(pattern=r"^sha256 [0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True)
class _Identity:
    """Which language model a run was trained with."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")
    model: Annotated[str, StringConstraints(min_length=1, max_length=10_000)]
    """Its name in the config."""
    identity: Annotated[str, StringConstraints(pattern=r"^(commit [0-9a-f]{40}|sha256 [0-9a-f]{64})$")]
    content: Digest | None = None
    """Of one with a commit, because a folder may be given in its place."""


def is_identified(run_dir: Path) -> bool:
    """True for a run that names its language model instead of storing it."""
    return (run_dir / LANGUAGE_MODEL / IDENTITY).is_file()


def save_language_model(folder: Path, config: DecoderConfig, decoder: Any) -> None:
    """Write the identity of a pretrained language model, or its architecture, to a folder, which is made if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    if decoder.is_stored_by_name(config):
        identity = {"model": config.model, "identity": digest(_KEY, config.model, decoder.revision)}
        if decoder.revision is not None:  # from the hub; the content serves if a folder is given in its place
            identity |= {"identity": f"{_COMMIT}{decoder.revision}", "content": identity["identity"]}
        write_atomic(folder / IDENTITY, json.dumps(identity, indent=2) + "\n")
    else:
        decoder.architecture.save_pretrained(folder)


def revision_of_language_model(run_dir: Path, decoder: DecoderConfig) -> str | None:
    """The commit to load from the hub, so that the language model is the one that the run was trained with, even if its
    owner has changed it since; None for a folder, and for a run that stores its language model. `decoder` is that of
    the run, or of one that continues it.

    Raises:
        CheckpointError: the folder that `decoder` names holds another model.
        ConfigError: there is no such language model.
    """
    if not is_identified(run_dir):
        return None
    stored = read_json(run_dir / LANGUAGE_MODEL / IDENTITY, _Identity)
    if not is_folder(decoder.model) and stored.identity.startswith(_COMMIT):
        return stored.identity.removeprefix(_COMMIT)
    if digest(_KEY, decoder.model) not in (stored.identity, stored.content):
        fault = f"{decoder.model} is not the language model that the run was trained with"
        fix = "put that back, or name it in decoder.model (of a finished run: in its config.yaml)"
        raise CheckpointError(f"{run_dir}: {fault}; {fix}")
    return None


def size_of_language_model(run_dir: Path, decoder: DecoderConfig, revision: str | None) -> int:
    """Bytes of the weights that a run with the decoder reads from elsewhere; errors: see `hub.snapshot`."""
    return size_of_weights(_KEY, decoder.model, revision) if is_identified(run_dir) else 0
