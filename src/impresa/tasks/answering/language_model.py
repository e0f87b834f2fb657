"""The language model that a run stands on: its identity where the run does not store it, else its architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from impresa.config.decoder import DecoderConfig
from impresa.errors import CheckpointError
from impresa.files import write_atomic
from impresa.hub import digest, is_folder
from impresa.run_dir.layout import BACKBONES

PART = "decoder"
LANGUAGE_MODEL = f"{BACKBONES}/{PART}"
"""Folder of a run that names its language model, and holds its architecture if all of it was trained."""
IDENTITY = "identity.json"


def is_identified(run_dir: Path) -> bool:
    """True for a run that names its language model instead of storing it."""
    return (run_dir / LANGUAGE_MODEL / IDENTITY).is_file()


def save_language_model(folder: Path, config: DecoderConfig, decoder: Any) -> None:
    """Write the identity of a pretrained language model, or its architecture, to a folder, which is made if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    if decoder.is_stored_by_name(config):
        identity = {"model": config.model, "identity": digest("decoder.model", config.model, decoder.revision)}
        if decoder.revision is not None:  # from the hub; the content serves if a folder is given in its place
            identity |= {"identity": f"commit {decoder.revision}", "content": identity["identity"]}
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
    stored = json.loads((run_dir / LANGUAGE_MODEL / IDENTITY).read_text())
    kind, _, commit = stored["identity"].partition(" ")
    if not is_folder(decoder.model) and kind == "commit":
        return str(commit)
    if digest("decoder.model", decoder.model) not in (stored["identity"], stored.get("content")):
        fault = f"{decoder.model} is not the language model that the run was trained with"
        fix = "put that back, or name it in decoder.model (of a finished run: in its config.yaml)"
        raise CheckpointError(f"{run_dir}: {fault}; {fix}")
    return None
