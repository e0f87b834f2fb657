"""An alignment as transformers reads it: CLIP's or SigLIP's own classes where they compute the same, else ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from impresa.config.experiment import ExperimentConfig
from impresa.export.auto_classes import MODEL_TYPE
from impresa.export.backbones import Inexpressible
from impresa.export.formats import CODE
from impresa.export.pairs import pair_in_transformers
from impresa.export.processors import (
    as_they_are,
    gives_the_same_pixels,
    image_processor_in_transformers,
    tokenizer_in_transformers,
)
from impresa.export.safetensors import copy_usable
from impresa.files import write_atomic
from impresa.hub import from_pretrained, quietly
from impresa.reports.rendering import render
from impresa.run_dir.layout import MODEL_CARD
from impresa.run_dir.load import load_embedder

if TYPE_CHECKING:
    from impresa.config.encoder import Modality
    from impresa.export.check import Reader
    from impresa.tasks.alignment.embedder import EmbeddingModel

_CODE = '''"""Read by transformers with trust_remote_code=True; the classes are Impresa's."""

from impresa.export.auto_classes import ImpresaConfig, ImpresaProcessor
from impresa.export.auto_model import ImpresaModel

__all__ = ["ImpresaConfig", "ImpresaModel", "ImpresaProcessor"]
'''
_CLASSES = {"AutoConfig": "ImpresaConfig", "AutoModel": "ImpresaModel", "AutoProcessor": "ImpresaProcessor"}


def write_transformers(config: ExperimentConfig, run_dir: Path, folder: Path) -> None:
    """Write a folder for `AutoModel` and `AutoProcessor`; its README says which classes they find there, and why."""
    embedder = load_embedder(run_dir, "cpu")
    try:
        kind, reason = write_pair(embedder, folder), ""
    except Inexpressible as inexpressible:
        kind, reason = "", str(inexpressible)
        _write_ours(embedder, run_dir, folder)
    image = embedder.preprocessing.image
    facts = {"kind": kind, "reason": reason, "crops": not gives_the_same_pixels(image)}
    write_atomic(folder / MODEL_CARD, render("transformers.md.j2", config=config, **facts))


def write_pair(embedder: EmbeddingModel, folder: Path) -> str:
    """Write CLIP's or SigLIP's model and processor; returns the name of the model's class.

    Raises:
        Inexpressible: neither computes the same. Nothing has been written.
    """
    from transformers import CLIPProcessor, SiglipProcessor

    prepared = embedder.preprocessing
    image, texts = image_processor_in_transformers(prepared.image), tokenizer_in_transformers(prepared.texts)
    pair = pair_in_transformers(embedder.model, prepared.image.size)
    kind = type(pair).__name__
    processor = (CLIPProcessor if kind == "CLIPModel" else SiglipProcessor)(image, texts)
    with quietly():
        pair.save_pretrained(folder)
        processor.save_pretrained(folder)
    return kind


def _write_ours(embedder: EmbeddingModel, run_dir: Path, folder: Path) -> None:
    copy_usable(run_dir, folder)
    tower = embedder.config.vision_encoder
    settings: dict[str, Any] = {
        "model_type": MODEL_TYPE,
        "architectures": [_CLASSES["AutoModel"]],
        "auto_map": {auto: f"modeling_impresa.{ours}" for auto, ours in _CLASSES.items()},
        "hidden_size": tower.embed_dim,
        "image_size": embedder.preprocessing.image.size,
        "mrl_dimensions": list(tower.mrl_dimensions) if tower.use_mrl else [],
    }
    write_atomic(folder / "config.json", json.dumps(settings, indent=2) + "\n")
    write_atomic(folder / CODE, _CODE)


def transformers_reader(folder: Path, size: int) -> Reader:
    """The folder as transformers' auto classes read it, for its check; `size` is that of the model's images. Our
    classes are known to them by then."""
    from transformers import AutoModel, AutoProcessor

    model, processor = from_pretrained(AutoModel, folder).eval(), from_pretrained(AutoProcessor, folder)
    pads = "max_length" if model.config.model_type == "siglip" else True

    def read(modality: Modality, inputs: list[Any], dim: int) -> Tensor:
        with torch.inference_mode():
            match modality:
                case "image":
                    given = processor(images=inputs, return_tensors="pt", **as_they_are(inputs, size))
                    out = model.get_image_features(given["pixel_values"])
                case "text":
                    words = processor(text=inputs, padding=pads, truncation=True, return_tensors="pt")
                    out = model.get_text_features(words["input_ids"], words.get("attention_mask"))
                case "audio":
                    out = model.get_audio_features(**processor(audio=[(clip.samples, clip.rate_hz) for clip in inputs]))
        features = getattr(out, "pooler_output", out)  # a tensor in older versions of transformers
        return F.normalize(features[:, :dim].float(), dim=-1)

    return read
