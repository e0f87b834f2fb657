"""An alignment from sentence-transformers' own modules, which need no code of ours: a pair of towers that transformers
has as one model, or a route for each modality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from impresa.config.encoder import Modality
from impresa.encoders.pooling import MeanPooling, SummaryPooling
from impresa.encoders.pretrained_text import SigLIPText
from impresa.encoders.tower import Tower
from impresa.export.backbones import Inexpressible, backbone_in_transformers
from impresa.export.processors import image_processor_in_transformers, tokenizer_in_transformers
from impresa.export.transformers import write_pair
from impresa.hub import quietly
from impresa.layers.mlp import MLP
from impresa.tasks.alignment.embedder import EmbeddingModel

_WITH_SUMMARY = ("clip_vision_model", "clip_text_model", "siglip_vision_model", "siglip_text_model")
"""Kinds of models whose own summary is their `pooler_output`; that of the others is their first token."""


def own_modules(embedder: EmbeddingModel, scratch: Path) -> list[nn.Module]:
    """The modules of a `SentenceTransformer` that computes the same embeddings of images and texts.

    Args:
        embedder: on the CPU.
        scratch: an empty folder, which holds parts of the modules for as long as they are not saved.

    Raises:
        Inexpressible: there are no such modules.
    """
    from sentence_transformers.base.modules import Normalize, Router

    if embedder.model.audio_encoder is not None:
        raise Inexpressible("the audio encoder has no module there")
    towers: dict[Modality, Tower] = {"text": embedder.model.text_encoder, "image": embedder.model.vision_encoder}
    pads = bool(getattr(embedder.preprocessing.texts, "pads_fully", False))
    try:
        write_pair(embedder, scratch / "pair")
        first: Any = _transformer(scratch / "pair", pads=pads)
    except Inexpressible:
        routes: Any = {name: _route(tower, name, embedder, scratch / name) for name, tower in towers.items()}
        first = Router(routes)
    return [first, Normalize()]


def _route(tower: Tower, modality: Modality, embedder: EmbeddingModel, folder: Path) -> list[nn.Module]:
    """The modules of one modality, up to its embedding."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    prepared = embedder.preprocessing
    _check(tower, modality)
    backbone = backbone_in_transformers(tower, prepared.image.size)
    reader: Any
    if modality == "text":
        reader = tokenizer_in_transformers(prepared.texts)
    else:
        reader = image_processor_in_transformers(prepared.image)
    with quietly():
        backbone.save_pretrained(folder)
        reader.save_pretrained(folder)
    sums_up = isinstance(tower.pooling, SummaryPooling)
    if sums_up and backbone.config.model_type in _WITH_SUMMARY:
        return [
            _transformer(folder, modality, "pooler_output", "sentence_embedding"),
            *_projection(tower.projection, "sentence_embedding"),
            *_head(tower),
        ]
    return [
        _transformer(folder, modality, "last_hidden_state", "token_embeddings"),
        *_projection(tower.projection, "token_embeddings"),
        Pooling(tower.dim, "cls" if sums_up else "mean"),
        *_head(tower),
    ]


def _check(tower: Tower, modality: Modality) -> None:
    if tower.perceiver is not None:
        raise Inexpressible(f"the {tower.part}'s Perceiver has no module there")
    if not isinstance(tower.pooling, SummaryPooling | MeanPooling):
        raise Inexpressible(f"the {tower.part}'s attention pooling has no module there")
    if isinstance(tower.backbone, SigLIPText):
        raise Inexpressible("SigLIP's texts are read there with its images alone, both by their own heads")
    if isinstance(tower.pooling, MeanPooling) and modality == "image" and tower.summary == "cls":
        raise Inexpressible(f"there the mean is of all tokens, and the {tower.part} leaves out its class token")


def _transformer(
    folder: Path, modality: Modality | None = None, output: str = "", name: str | None = None, *, pads: bool = False
) -> Any:
    """The module that reads a folder of transformers; without a modality it finds them out by itself."""
    from sentence_transformers.base.modules import Transformer

    settings: Any = {"text": {"padding": "max_length"}} if pads else None
    known: Any = {modality: {"method": "forward", "method_output_name": output}} if modality else None
    with quietly():
        return Transformer(str(folder), modality_config=known, module_output_name=name, processing_kwargs=settings)


def _projection(projection: nn.Module, key: str) -> list[nn.Module]:
    match projection:
        case MLP():
            return [_dense(projection.up, projection.activation, key), _dense(projection.down, nn.Identity(), key)]
        case nn.Linear():
            return [_dense(projection, nn.Identity(), key)]
        case _:
            return []


def _head(tower: Tower) -> list[nn.Module]:
    if isinstance(tower.head, nn.Identity):
        return []
    return [_dense(tower.head, nn.Identity(), "sentence_embedding")]


def _dense(linear: Any, activation: Any, key: str) -> nn.Module:
    from sentence_transformers.base.modules import Dense

    if not type(activation).__module__.startswith("torch."):
        raise Inexpressible(f"{type(activation).__name__} of the projection has no module there")
    dense = Dense(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        activation_function=activation,
        module_input_name=key,
    )
    with torch.no_grad():
        dense.linear.load_state_dict(linear.state_dict())
    return dense
