"""An alignment as open_clip reads it, where its towers are those of CLIP: a config, weights and the tokenizer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from impresa.config.describe import listed
from impresa.config.experiment import ExperimentConfig
from impresa.data.images import ImageTransform
from impresa.encoders.tower import Tower
from impresa.errors import CheckpointError
from impresa.export.backbones import Inexpressible, backbone_in_transformers
from impresa.export.formats import OPEN_CLIP_CONFIG
from impresa.export.pairs import check_path
from impresa.export.processors import tokenizer_in_transformers
from impresa.files import replacing, write_atomic
from impresa.hub import import_optional, quietly
from impresa.reports.rendering import render
from impresa.run_dir.layout import MODEL_CARD
from impresa.run_dir.load import load_embedder
from impresa.tasks.alignment.model import AlignmentModel

if TYPE_CHECKING:
    from impresa.config.encoder import Modality
    from impresa.export.check import Reader

WEIGHTS = "open_clip_model.safetensors"
_EPS = 1e-5
_RESIZE = {"crop": "shortest", "pad": "longest", "squash": "squash"}
_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_VISION = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post",
}
_TEXT = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
}
"""Names in transformers' CLIP, and open_clip's."""


def write_open_clip(config: ExperimentConfig, run_dir: Path, folder: Path) -> None:
    """Write a folder for `open_clip.create_model_and_transforms("local-dir:...")`.

    Raises:
        CheckpointError: open_clip has no such model; the line says what is missing and which formats have it.
    """
    embedder = load_embedder(run_dir, "cpu")
    prepared = embedder.preprocessing
    try:
        settings, weights = in_open_clip(embedder.model, prepared.image.size)
        pixels = _preprocessing(prepared.image)
        tokenizer = tokenizer_in_transformers(prepared.texts)
    except Inexpressible as reason:
        others = listed(("transformers", "sentence-transformers", "safetensors"), "or")
        raise CheckpointError(f"{run_dir}: open_clip cannot hold it ({reason}); choose --to {others}") from reason
    settings["text_cfg"]["hf_tokenizer_name"] = folder_name(config.name)
    described = {"model_cfg": settings, "preprocess_cfg": pixels}
    write_atomic(folder / OPEN_CLIP_CONFIG, json.dumps(described, indent=2) + "\n")
    with replacing(folder / WEIGHTS) as path:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    with quietly():
        tokenizer.save_pretrained(folder)
    write_atomic(folder / MODEL_CARD, render("open_clip.md.j2", config=config))


def folder_name(name: str) -> str:
    """A placeholder for the tokenizer, which open_clip reads from the folder itself; it must not be empty."""
    return re.sub(r"\W+", "-", name).strip("-") or "impresa"


def in_open_clip(model: AlignmentModel, image_size: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """open_clip's `model_cfg`, and the state dict of the model that it describes.

    Raises:
        Inexpressible: it has no such model.
    """
    if model.audio_encoder is not None:
        raise Inexpressible("the audio encoder has no place there")
    vision, text = (_clip_tower(tower, image_size) for tower in (model.vision_encoder, model.text_encoder))
    acts = {vision.config.hidden_act, text.config.hidden_act}
    if len(acts) > 1 or not acts <= {"gelu", "quick_gelu"}:
        raise Inexpressible(f"there both towers have gelu or quick_gelu, and here {listed(sorted(acts), 'and')}")
    has_pre_norm = not isinstance(getattr(model.vision_encoder.backbone, "pre_norm", None), nn.Identity)
    image_head: Any = model.vision_encoder.head
    text_head: Any = model.text_encoder.head
    settings: dict[str, Any] = {
        "embed_dim": text_head.weight.shape[0],
        "quick_gelu": acts == {"quick_gelu"},
        "vision_cfg": _vision_settings(vision.config, has_pre_norm=has_pre_norm),
        "text_cfg": _text_settings(text.config),
    }
    weights = {f"visual.{name}": value for name, value in _renamed(vision, _VISION).items()}
    if not has_pre_norm:
        weights = {name: value for name, value in weights.items() if ".ln_pre." not in name}
    weights |= _renamed(text, _TEXT)
    weights["visual.proj"] = image_head.weight.T
    weights["text_projection"] = text_head.weight.T
    weights["logit_scale"] = model.loss.logit_scale
    if model.loss.logit_bias is not None:
        settings["init_logit_bias"] = model.loss.logit_bias.value.item()
        weights["logit_bias"] = model.loss.logit_bias.value
    return settings, {name: value.detach().float().clone() for name, value in weights.items()}


def _clip_tower(tower: Tower, image_size: int) -> Any:
    check_path(tower)
    backbone = backbone_in_transformers(tower, image_size, as_clip=True)
    kind = backbone.config.model_type
    if kind not in ("clip_vision_model", "clip_text_model"):
        raise Inexpressible(f"the {tower.part} is a {kind}, and no tower of CLIP")
    if backbone.config.layer_norm_eps != _EPS:
        raise Inexpressible(
            f"its norms have an epsilon of {_EPS:g}, the {tower.part}'s {backbone.config.layer_norm_eps:g}"
        )
    return backbone


def _vision_settings(config: Any, *, has_pre_norm: bool) -> dict[str, Any]:
    return {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "head_width": config.hidden_size // config.num_attention_heads,
        "mlp_ratio": _ratio(config),
        "no_ln_pre": not has_pre_norm,
    }


def _text_settings(config: Any) -> dict[str, Any]:
    return {
        "context_length": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "layers": config.num_hidden_layers,
        "mlp_ratio": _ratio(config),
        "pool_type": "eos",
        "eos_id": config.eos_token_id,
    }


def _ratio(config: Any) -> float:
    """The ratio that gives the hidden width when it is multiplied and cut to an integer."""
    ratio: float = config.intermediate_size / config.hidden_size
    return ratio if int(ratio * config.hidden_size) == config.intermediate_size else ratio * (1 + 1e-12)


def _renamed(model: Any, names: dict[str, str]) -> dict[str, Tensor]:
    """A tower's weights under open_clip's names; queries, keys and values are one tensor there."""
    found: dict[str, Tensor] = {}
    state = model.state_dict()
    for name, value in state.items():
        layer, _, rest = name.removeprefix("encoder.layers.").partition(".")
        module, _, kind = rest.rpartition(".")
        if not name.startswith("encoder.layers."):
            prefix = name if name in names else name.rpartition(".")[0]
            found[name.replace(prefix, names[prefix])] = value
        elif module in _BLOCK:
            found[f"transformer.resblocks.{layer}.{_BLOCK[module]}.{kind}"] = value
        elif module == "self_attn.q_proj":
            parts = [state[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            found[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(parts)
    return found


def _preprocessing(transform: ImageTransform) -> dict[str, Any]:
    if transform.crop_fraction != 1:
        side = transform.size / transform.crop_fraction
        raise Inexpressible(f"there images are resized to {transform.size} pixels before they are cut, not {side:g}")
    if transform.resample not in ("bicubic", "bilinear"):
        raise Inexpressible(f"there images are resized by bicubic or bilinear filters, here by {transform.resample}")
    if transform.resize == "pad" and len(set(transform.bars)) > 1:
        raise Inexpressible("there the bars beside padded images are grey, here of the colour of the mean")
    return {
        "size": transform.size,
        "mode": "RGB",
        "mean": list(transform.mean),
        "std": list(transform.std),
        "interpolation": transform.resample,
        "resize_mode": _RESIZE[transform.resize],
        "fill_color": transform.bars[0],
    }


def open_clip_reader(folder: Path) -> Reader:
    """The folder as open_clip reads it, for its check."""
    open_clip = import_optional("--check", "open_clip", "open_clip_torch")
    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()

    def read(modality: Modality, inputs: list[Any], dim: int) -> Tensor:
        with torch.inference_mode():
            if modality == "image":
                features = model.encode_image(torch.stack([prepare(image) for image in inputs]))
            else:
                features = model.encode_text(tokenize(inputs))
        return F.normalize(features[:, :dim].float(), dim=-1)

    return read
