"""The language model that a run stands on: its identity where the run does not store it, else its architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from impresa.config.experiment import DecoderConfig
from impresa.errors import CheckpointError
from impresa.files import write_atomic
from impresa.hub import digest, is_folder
from impresa.run_dir.layout import BACKBONES

PART = "decoder"
LANGUAGE_MODEL = f"{BACKBONES}/{PART}"
"""Folder of a run that names its language model, and holds its architecture if all of it was trained."""
IDENTITY = "identity.json"


def is_kept_elsewhere(decoder: DecoderConfig) -> bool:
    """Whether a run stores the language model by name alone: it is pretrained, and nothing in it is trained."""
    return decoder.type == "qwen" and (decoder.use_lora or decoder.load_in_4bit or decoder.freeze)


def is_identified(run_dir: Path) -> bool:
    """Whether a run names its language model instead of storing it."""
    return (run_dir / LANGUAGE_MODEL / IDENTITY).is_file()


def save_language_model(folder: Path, config: DecoderConfig, decoder: Any) -> None:
    """Write down the language model of a `QwenDecoder` into a folder, which is made if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    if is_kept_elsewhere(config):
        write_atomic(folder / IDENTITY, json.dumps(_identity(config.model, decoder.revision), indent=2) + "\n")
    else:
        decoder.model.config.save_pretrained(folder)


def revision_of_language_model(run_dir: Path, decoder: DecoderConfig) -> str | None:
    """The commit to load from the hub, so that the language model is the one that was trained with, even if its owner
    has changed it since; None where that needs none.

    Args:
        run_dir: a run; one that stores its language model needs none.
        decoder: names the language model, of this run or of one that continues it.

    Raises:
        CheckpointError: the folder that `decoder` names has another one, whatever its name.
        ConfigError: there is no such language model.
    """
    if not is_identified(run_dir):
        return None
    then = json.loads((run_dir / LANGUAGE_MODEL / IDENTITY).read_text())
    kind, _, commit = then["identity"].partition(" ")
    if not is_folder(decoder.model) and kind == "commit":
        return str(commit)
    if digest("decoder.model", decoder.model) not in (then["identity"], then.get("content")):
        fault = f"{decoder.model} is not the language model that the run was trained with"
        fix = "put that back, or name it in decoder.model (of a finished run: in its config.yaml)"
        raise CheckpointError(f"{run_dir}: {fault}; {fix}")
    return None


def _identity(name: str, commit: str | None) -> dict[str, str]:
    """The digest of a model by folder; of one from the hub the commit, and the digest for those who will give a folder
    in its place."""
    content = digest("decoder.model", name, commit)
    if commit is None:
        return {"model": name, "identity": content}
    return {"model": name, "identity": f"commit {commit}", "content": content}
