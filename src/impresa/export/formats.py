"""The formats of an export, and the runs that each can hold. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from impresa.config.describe import listed
from impresa.config.experiment import ExperimentConfig
from impresa.decoders.kinds import why_not_exportable
from impresa.errors import CheckpointError

Format = Literal["safetensors", "sentence-transformers", "transformers", "open_clip", "onnx", "peft", "merged"]
OF_EMBEDDINGS: tuple[Format, ...] = ("safetensors", "sentence-transformers", "transformers", "open_clip", "onnx")
"""For an alignment."""
OF_OTHER_PROCESSORS: tuple[Format, ...] = ("sentence-transformers", "transformers", "open_clip")
"""Those that may prepare images by another library."""
CODE = "modeling_impresa.py"
"""File of a folder that names those classes of ours."""
OPEN_CLIP_CONFIG = "open_clip_config.json"
READERS: dict[Format, tuple[str, str]] = {
    "sentence-transformers": ("sentence_transformers", "sentence-transformers"),
    "open_clip": ("open_clip", "open_clip_torch"),
    "onnx": ("onnxruntime", "impresa[onnx]"),
    "peft": ("peft", "peft"),
}
"""Libraries that read a format and are not always there: their names, and the arguments of pip."""
OF_LANGUAGE_MODELS: tuple[Format, ...] = ("peft", "merged")
"""For a run with a pretrained decoder."""


def chosen_format(config: ExperimentConfig, run_dir: Path, to: Format | None) -> Format:
    """The format that was asked for; without one a language model's adapters, or all of it where it has none.

    Raises:
        CheckpointError: the run cannot be expressed in that format; the line names those that can.
    """
    if config.decoder is None:
        if to in OF_EMBEDDINGS:
            return to
        fault = "is an alignment" if to is None else f"is an alignment, and {to} is for language models"
        raise CheckpointError(f"{run_dir}: {fault}; choose --to {listed(OF_EMBEDDINGS, 'or')}")
    if reason := why_not_exportable(config.decoder):
        raise CheckpointError(f"{run_dir}: {reason}")
    if to in OF_EMBEDDINGS:
        fault = f"has a decoder, and {to} is for the encoders of an alignment"
        raise CheckpointError(f"{run_dir}: {fault}; choose --to {listed(OF_LANGUAGE_MODELS, 'or')}")
    if to == "peft" and not config.decoder.use_lora:
        raise CheckpointError(f"{run_dir}: was trained whole, without adapters for peft; choose --to merged")
    return to or ("peft" if config.decoder.use_lora else "merged")


def has_our_code(folder: Path) -> bool:
    """True for a written folder that other libraries read by classes of ours."""
    return (folder / CODE).is_file()


def check_free(folder: Path) -> None:
    """Refuse a folder that holds something already, as a `CheckpointError`."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointError(f"{folder}: is there already; name a new or an empty folder")
