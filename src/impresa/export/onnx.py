"""The encoders of an alignment as ONNX files, one for each modality, with tokenizer and preprocessing beside them."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from impresa.config.encoder import Modality
from impresa.config.experiment import ExperimentConfig
from impresa.data.audio import Clip
from impresa.data.preprocessing import AudioTransform, Preprocessing
from impresa.errors import CheckpointError
from impresa.export.safetensors import copy_folder
from impresa.files import write_atomic
from impresa.hub import import_optional, quietly
from impresa.reports.rendering import render
from impresa.run_dir.layout import CONFIG, MODEL_CARD, PREPROCESSING, TOKENIZER
from impresa.run_dir.load import load_embedder
from impresa.tasks.arguments import Named
from impresa.tasks.inputs import pixels_of

if TYPE_CHECKING:
    from impresa.export.check import Reader

_MOST_BYTES_WITHIN = 1 << 30
"""Of the weights of a file; more lie beside it, for a file of ONNX has 2 GiB at most."""
_TRACED = 2
"""Inputs that the exporter sees; a batch of one would be taken for the only size."""


class _Encoder(nn.Module):
    """A tower whose mask, where it has one, is of int64, and whose embeddings (B, E) have length one."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        rest = () if mask is None else (mask.bool(),)
        return F.normalize(self.tower(inputs, *rest).pooled, dim=-1)


def write_onnx(config: ExperimentConfig, run_dir: Path, folder: Path) -> None:
    """Write `image.onnx`, `text.onnx` and with an audio tower `audio.onnx`, by torch's exporter.

    Raises:
        CheckpointError: a tower computes something that the exporter cannot express.
        ConfigError: onnx or onnxscript is missing.
    """
    for package in ("onnx", "onnxscript"):
        import_optional("--to", package, "impresa[onnx]")
    embedder = load_embedder(run_dir, "cpu")
    prepared, model = embedder.preprocessing, embedder.model
    size = prepared.image.size
    batch = torch.export.Dim.DYNAMIC
    pixels = torch.zeros(_TRACED, 3, size, size)
    _write(model.vision_encoder, folder, "image", {"pixel_values": pixels}, {0: batch}, run_dir)
    ids, mask = prepared.texts(["a picture of three words", "another one"])
    pads_fully = prepared.texts([""])[0].shape == prepared.texts(["a b c d e f g h"])[0].shape
    words = {"input_ids": ids, "attention_mask": mask.long()}
    _write(model.text_encoder, folder, "text", words, {0: batch} if pads_fully else {0: batch, 1: batch}, run_dir)
    if prepared.audio is not None and model.audio_encoder is not None:
        features, real = padded_features(prepared.audio, config, [Clip(torch.zeros(1), 16_000)] * _TRACED)
        sounds = {"input_features": features, "attention_mask": real.long()}
        _write(model.audio_encoder, folder, "audio", sounds, {0: batch}, run_dir)
    for name in (CONFIG, PREPROCESSING):
        shutil.copy(run_dir / name, folder)
    copy_folder(run_dir, folder, TOKENIZER)
    write_atomic(folder / MODEL_CARD, render("onnx.md.j2", config=config, size=size, pads_fully=pads_fully))


def padded_features(transform: AudioTransform, config: ExperimentConfig, clips: list[Clip]) -> tuple[Tensor, Tensor]:
    """Features (B, F, M) and mask (B, F) with F that of the longest clip, for the file has one length."""
    assert config.audio_encoder is not None
    longest = Clip(torch.zeros(int(config.audio_encoder.audio_max_seconds * 16_000)), 16_000)
    features, mask = transform([*clips, longest])
    return features[:-1], mask[:-1]


def _write(  # noqa: PLR0917
    tower: nn.Module, folder: Path, name: Modality, inputs: dict[str, Tensor], dynamic: dict[int, Any], run_dir: Path
) -> None:
    encoder = _Encoder(tower).eval()
    num_bytes = sum(parameter.numel() * 4 for parameter in tower.parameters())
    try:
        with torch.no_grad(), quietly(), _without_warnings():
            torch.onnx.export(
                encoder,
                tuple(inputs.values()),
                folder / f"{name}.onnx",
                input_names=list(inputs),
                output_names=["embeddings"],
                dynamic_shapes=tuple(dynamic for _ in inputs),
                dynamo=True,
                external_data=num_bytes > _MOST_BYTES_WITHIN,
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever it met
        reason = next(iter(str(error.__cause__ or error).strip().splitlines()), type(error).__name__)
        fault = f"{run_dir}: the {name} encoder cannot be expressed in ONNX ({reason})"
        raise CheckpointError(f"{fault}; choose --to safetensors or sentence-transformers") from error


@contextmanager
def _without_warnings() -> Iterator[None]:
    """The exporter warns of what it lacks and skips, of which nothing concerns the file."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def onnx_reader(folder: Path) -> Reader:
    """The folder as onnxruntime reads it, for its check."""
    import onnxruntime

    from impresa.run_dir.load import read_run_config

    prepared = Preprocessing.load(folder)
    names = [path.stem for path in folder.glob("*.onnx")]
    sessions = {
        name: onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in names
    }

    def read(modality: Modality, inputs: list[Any], dim: int) -> Tensor:
        session = sessions[modality]
        match modality:
            case "image":
                values = [pixels_of([Named("image", image) for image in inputs], prepared.image)]
            case "text":
                values = list(prepared.texts(inputs))
            case "audio":
                assert prepared.audio is not None
                values = list(padded_features(prepared.audio, read_run_config(folder), inputs))
        named = zip((given.name for given in session.get_inputs()), values, strict=True)
        feeds = {name: (value.long() if value.dtype == torch.bool else value).numpy() for name, value in named}
        (embeddings,) = session.run(None, feeds)
        return F.normalize(torch.from_numpy(embeddings)[:, :dim], dim=-1)

    return read
