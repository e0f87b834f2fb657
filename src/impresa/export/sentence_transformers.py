"""An alignment as sentence-transformers reads it: by its own modules, or one of ours for texts, images and sounds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F

from impresa.config.encoder import Modality
from impresa.config.experiment import ExperimentConfig
from impresa.data.audio import Clip
from impresa.errors import DataError
from impresa.export.backbones import Inexpressible
from impresa.export.formats import CODE, has_our_code
from impresa.export.processors import as_they_are, gives_the_same_pixels
from impresa.export.routes import own_modules
from impresa.export.safetensors import copy_usable
from impresa.files import write_atomic
from impresa.hub import import_optional, quietly
from impresa.reports.rendering import render
from impresa.run_dir.layout import MODEL_CARD
from impresa.run_dir.load import load_embedder
from impresa.tasks.alignment.embedder import EmbeddingModel
from impresa.tasks.arguments import Named
from impresa.tasks.inputs import features_of, pixels_of

if TYPE_CHECKING:
    from impresa.export.check import Reader

    InputModule: Any = object
else:
    InputModule = import_optional(
        "--to", "sentence_transformers", "sentence-transformers"
    ).sentence_transformer.modules.InputModule

SUBFOLDER = "0_ImpresaModule"
_CODE = '''"""Read by sentence-transformers with trust_remote_code=True; the model is Impresa's."""

from impresa.export.sentence_transformers import ImpresaModule

__all__ = ["ImpresaModule"]
'''


def write_sentence_transformer(config: ExperimentConfig, run_dir: Path, folder: Path) -> None:
    """Write a folder for `SentenceTransformer(folder)`, of the library's own modules; where these cannot compute the
    same, of a module of ours, which needs `trust_remote_code=True`. The README says which, and why."""
    embedder = load_embedder(run_dir, "cpu")
    stored = config.text_encoder.prompts
    prompts = {name: prompt for name in ("query", "document") if (prompt := getattr(stored, name, None))}
    try:
        _write_own_modules(embedder, prompts, folder)
        reason = ""
    except Inexpressible as inexpressible:
        reason = str(inexpressible)
        _write_our_module(run_dir, prompts, folder)
    crops = not reason and not gives_the_same_pixels(embedder.preprocessing.image)
    write_atomic(folder / MODEL_CARD, render("sentence_transformer.md.j2", config=config, reason=reason, crops=crops))


def _write_own_modules(embedder: EmbeddingModel, prompts: dict[str, str], folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    with TemporaryDirectory() as scratch, quietly():
        modules = own_modules(embedder, Path(scratch))
        model = SentenceTransformer(modules=modules, prompts=prompts or None, similarity_fn_name="cosine", device="cpu")
        model.save_pretrained(str(folder), create_model_card=False)


def _write_our_module(run_dir: Path, prompts: dict[str, str], folder: Path) -> None:
    (folder / SUBFOLDER).mkdir()
    copy_usable(run_dir, folder / SUBFOLDER)
    module = {"idx": 0, "name": "0", "path": SUBFOLDER, "type": "modeling_impresa.ImpresaModule"}
    settings = {
        "model_type": "SentenceTransformer",
        "similarity_fn_name": "cosine",
        "prompts": prompts,
        "default_prompt_name": None,
    }
    write_atomic(folder / "modules.json", json.dumps([module], indent=2) + "\n")
    write_atomic(folder / "config_sentence_transformers.json", json.dumps(settings, indent=2) + "\n")
    write_atomic(folder / CODE, _CODE)


def reader(folder: Path, size: int) -> Reader:
    """The folder as sentence-transformers reads it, for its check; `size` is that of the model's images."""
    from sentence_transformers import SentenceTransformer

    has_code = has_our_code(folder)
    model = SentenceTransformer(str(folder), trust_remote_code=has_code, local_files_only=True, device="cpu")

    def read(modality: Modality, inputs: list[Any], dim: int) -> Tensor:
        if modality == "audio":
            inputs = [{"array": clip.samples, "sampling_rate": clip.rate_hz} for clip in inputs]
        special: Any = {}
        if modality == "image" and not has_code:
            special = {"processing_kwargs": {"image": as_they_are(inputs, size)}}
        given = {"truncate_dim": dim, "normalize_embeddings": True, "convert_to_tensor": True, **special}
        embeddings = model.encode(inputs, **given)
        assert isinstance(embeddings, Tensor)
        return embeddings

    return read


class ImpresaModule(InputModule):
    """An alignment as the only module of a `SentenceTransformer`; its towers are frozen.

    Args:
        folder: with the files that `impresa.load` reads.
    """

    save_in_root = False

    def __init__(self, folder: Path) -> None:
        super().__init__()
        embedder = load_embedder(folder, "cpu")
        self.folder, self.model = folder, embedder.model
        self.preprocessing, self.embed_dim = embedder.preprocessing, embedder.embed_dim

    @property
    def modalities(self) -> list[str]:
        return ["text", "image", *(["audio"] if self.preprocessing.audio else [])]

    @property
    def max_seq_length(self) -> int:
        return self.preprocessing.texts.max_len

    def get_embedding_dimension(self) -> int:
        return self.embed_dim

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Any]:
        """Features of inputs of one kind: strings are texts, PIL images are images, `{"array", "sampling_rate"}` are
        sounds.

        Raises:
            DataError: an input is none of these, or the kinds are mixed.
        """
        told = [_told(value) for value in inputs]
        if len({modality for modality, _ in told}) > 1:
            raise DataError("inputs: texts, images or sounds are mixed; encode each kind by itself")
        items = [Named("input", item) for _, item in told]
        match told[0][0]:
            case "text":
                ids, mask = self.preprocessing.texts([f"{prompt or ''}{text}" for _, text in told])
                return {"input_ids": ids, "attention_mask": mask}
            case "image":
                return {"pixel_values": pixels_of(items, self.preprocessing.image)}
            case "audio":
                if self.preprocessing.audio is None:
                    raise DataError("sound: the model has no audio encoder; give texts or images")
                features, mask = features_of(items, self.preprocessing.audio)
                return {"input_features": features, "attention_mask": mask}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `sentence_embedding`, (N, E) of length one."""
        if "input_ids" in features:
            embeddings = self.model.embed_text(features["input_ids"], features["attention_mask"])
        elif "pixel_values" in features:
            embeddings = self.model.embed_image(features["pixel_values"])
        else:
            embeddings = self.model.embed_audio(features["input_features"], features["attention_mask"])
        features["sentence_embedding"] = F.normalize(embeddings.float(), dim=-1)
        return features

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Copy the files; the towers are frozen, so that they are as they were."""
        shutil.copytree(self.folder, output_path, dirs_exist_ok=True)

    @classmethod
    def load(  # noqa: PLR0917 - the library's own order
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **_: Any,
    ) -> Self:
        """The module of a folder, or of a repository of the hub."""
        path = cls.load_dir_path(
            model_name_or_path,
            subfolder,
            token=token,
            cache_folder=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
        )
        return cls(Path(path))


def _told(value: Any) -> tuple[Modality, Any]:
    if isinstance(value, dict) and len(value) == 1 and (kind := next(iter(value))) in ("text", "image", "audio"):
        inner = value[kind]
        return (kind, inner) if kind != "audio" or not isinstance(inner, dict) else _told(inner)
    if isinstance(value, str):
        return "text", value
    if isinstance(value, Image):
        return "image", value
    if isinstance(value, dict) and value.keys() == {"array", "sampling_rate"}:
        return "audio", Clip(torch.as_tensor(value["array"], dtype=torch.float32), int(value["sampling_rate"]))
    raise DataError(
        f"input: is a {type(value).__name__}; give a text, a PIL image or a dict of array and sampling_rate"
    )
