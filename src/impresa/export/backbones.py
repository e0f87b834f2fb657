"""The backbone of a tower as a model of transformers that computes the same, where there is one.

Letters of shapes: N patches, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from impresa.encoders.lora import is_adapter
from impresa.encoders.pretrained import PretrainedBackbone
from impresa.encoders.pretrained_text import SigLIPText
from impresa.encoders.pretrained_vision import CLIPVision, SigLIPVision
from impresa.encoders.text import TextTransformer
from impresa.encoders.tower import Tower
from impresa.encoders.transformer import Transformer
from impresa.encoders.vision import PatchEmbedding, VisionTransformer
from impresa.layers.mlp import QuickGELU

_STACKS = ("encoder.layers", "layers", "encoder.layer")
_PLACES = {
    "attention_norm": ("layer_norm1", "layernorm_before"),
    "query": ("self_attn.q_proj", "attention.q_proj", "attention.attention.query"),
    "key": ("self_attn.k_proj", "attention.k_proj", "attention.attention.key"),
    "value": ("self_attn.v_proj", "attention.v_proj", "attention.attention.value"),
    "out": ("self_attn.out_proj", "attention.o_proj", "attention.output.dense"),
    "mlp_norm": ("layer_norm2", "layernorm_after"),
    "up": ("mlp.fc1", "intermediate.dense"),
    "down": ("mlp.fc2", "output.dense"),
}
"""Names that the parts of a block have in CLIP and in ViT, in several versions of transformers."""
_UNUSED = ("pooler.", "embeddings.mask_token")
"""Parts of transformers' models that no embedding of ours passes; they keep the values that they are built with."""


class Inexpressible(Exception):  # noqa: N818 - a reason, which becomes the error of whoever asked
    """Another library has no such part; the message is the reason alone, with the part as its subject."""


def backbone_in_transformers(tower: Tower, image_size: int, *, as_clip: bool = False) -> Any:
    """A new model of transformers, in float32 and eval mode, that computes what the backbone of `tower` does.

    Args:
        tower: on the CPU; of SigLIP's for texts the head comes along.
        image_size: S, for a tower of images; the position embeddings of CLIP and SigLIP are brought to it.
        as_clip: make CLIP's model of a ViT without a norm before its blocks too; the caller leaves out that norm.

    Raises:
        Inexpressible: transformers has no such model.
    """
    backbone = tower.backbone
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        if isinstance(backbone, VisionTransformer):
            model = _of_our_vit(backbone, as_clip=as_clip)
        elif isinstance(backbone, TextTransformer):
            model = _of_our_text(backbone)
        elif isinstance(backbone, PretrainedBackbone) and backbone.config is not None:
            model = _of_pretrained(backbone, tower, image_size)
        else:
            raise Inexpressible(f"the {tower.part}'s {type(backbone).__name__} is in no other library")
    return model.eval()


def _of_our_vit(vit: VisionTransformer, *, as_clip: bool) -> Any:
    """`ViTModel`, or with a norm before the blocks CLIP's."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

    if vit.memory is not None:
        raise Inexpressible("memory tokens are in no other library")
    patches = vit.patch_embedding
    if not isinstance(patches, PatchEmbedding):
        raise Inexpressible("stem: conv is in no other library")
    sizes = {"image_size": vit.image_size, "patch_size": patches.patch_size, **_sizes(vit.transformer)}
    positions = vit.positions.clone()
    model: Any
    kernel = patches.weight.unflatten(1, (3, patches.patch_size, patches.patch_size))
    if isinstance(vit.pre_norm, nn.Identity) and not as_clip:
        model = ViTModel(ViTConfig(**sizes))
        model.embeddings.cls_token.copy_(vit.cls)
        model.embeddings.position_embeddings.copy_(positions)
        projection = model.embeddings.patch_embeddings.projection
        projection.weight.copy_(kernel)
        projection.bias.copy_(torch.zeros(vit.dim) if patches.bias is None else patches.bias)
        _copy(vit.transformer.norm, model.layernorm)
    else:
        model = CLIPVisionModel(CLIPVisionConfig(**sizes))
        if patches.bias is not None:  # CLIP has none; what is added to each patch may as well be added to its position
            positions[1:] += patches.bias
        model.embeddings.class_embedding.copy_(vit.cls)
        model.embeddings.position_embedding.weight.copy_(positions)
        model.embeddings.patch_embedding.weight.copy_(kernel)
        if not isinstance(vit.pre_norm, nn.Identity):
            _copy(vit.pre_norm, model.pre_layrnorm)
        _copy(vit.transformer.norm, model.post_layernorm)
    _fill(vit.transformer, model)
    return model


def _of_our_text(text: TextTransformer) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=text.token_embedding.num_embeddings,
        max_position_embeddings=len(text.positions),
        eos_token_id=text.end_id,
        bos_token_id=None,
        pad_token_id=None,
        **_sizes(text.transformer),
    )
    if text.end_id == 2:
        raise Inexpressible("an end token of number 2 means something else to CLIP's text tower")
    model = CLIPTextModel(config)
    _copy(text.token_embedding, model.embeddings.token_embedding)
    model.embeddings.position_embedding.weight.copy_(text.positions)
    _copy(text.transformer.norm, model.final_layer_norm)
    _fill(text.transformer, model)
    return model


def _sizes(transformer: Transformer) -> dict[str, Any]:
    """Settings of the same name in ViT's and CLIP's configs."""
    block: Any = transformer.blocks[0]
    return {
        "hidden_size": block.mlp.up.in_features,
        "intermediate_size": block.mlp.up.out_features,
        "num_hidden_layers": len(transformer.blocks),
        "num_attention_heads": block.attention.num_heads,
        "hidden_act": "quick_gelu" if isinstance(block.mlp.activation, QuickGELU) else "gelu",
        "layer_norm_eps": transformer.norm.eps,
    }


def _fill(transformer: Transformer, model: Any) -> None:
    """Copy the blocks."""
    blocks: Any = transformer.blocks
    for block, layer in zip(blocks, _first(model, _STACKS).children(), strict=True):
        for part, source in (("attention_norm", block.attention_norm), ("query", block.attention.query),
                             ("out", block.attention.out), ("mlp_norm", block.mlp_norm),
                             ("up", block.mlp.up), ("down", block.mlp.down)):  # fmt: skip
            _copy(source, _first(layer, _PLACES[part]))
        both = block.attention.key_value
        for part, weight, bias in zip(("key", "value"), both.weight.chunk(2), both.bias.chunk(2), strict=True):
            _first(layer, _PLACES[part]).load_state_dict({"weight": weight, "bias": bias})


def _first(module: nn.Module, names: tuple[str, ...]) -> nn.Module:
    there = dict(module.named_modules())
    return next(there[name] for name in names if name in there)


def _copy(source: nn.Module, target: Any) -> None:
    target.load_state_dict(source.state_dict())


def _of_pretrained(backbone: PretrainedBackbone, tower: Tower, image_size: int) -> Any:
    """The backbone's own model, put together again, with its adapters merged in."""
    source = backbone.model
    config = type(source.config).from_dict(source.config.to_dict())
    state = _without_adapters(source)
    if isinstance(backbone, CLIPVision | SigLIPVision) and config.image_size != image_size:
        name = "embeddings.position_embedding.weight"
        state[name] = _interpolated(source.embeddings, image_size, state[name])
        config.image_size = image_size
    if isinstance(backbone, SigLIPVision):
        config.vision_use_head = backbone.pooler is not None
        if backbone.pooler is not None:
            state |= {f"head.{name}": value for name, value in backbone.pooler.state_dict().items()}
    if isinstance(backbone, SigLIPText):  # whose model has the head too
        head: Any = tower.head
        weight, bias = head.weight, getattr(head, "bias", None)
        state |= {"head.weight": weight, "head.bias": torch.zeros(len(weight)) if bias is None else bias}
        config.projection_size = len(weight)
    model = type(source)(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or any(not name.startswith(_UNUSED) for name in missing):
        raise Inexpressible(
            f"{type(source).__name__} of this version of transformers lacks {[*unexpected, *missing][0]}"
        )
    return model


def _without_adapters(model: Any) -> dict[str, Tensor]:
    """The weights of a model, in which the low-rank adapters of its blocks have been added to what they adapt."""
    for module in model.modules():
        if hasattr(module, "base_layer"):
            module.merge()
    state = {name.replace(".base_layer.", "."): value for name, value in model.state_dict().items()}
    return {name: value for name, value in state.items() if not is_adapter(name)}


def _interpolated(embeddings: Any, image_size: int, own: Tensor) -> Tensor:
    """The position embeddings for images of another size: (1 + N, D), or (N, D) without CLS."""
    num_special = own.shape[0] - embeddings.num_patches
    length = num_special + (image_size // embeddings.patch_size) ** 2
    return embeddings.interpolate_pos_encoding(own.new_zeros(1, length, own.shape[1]), image_size, image_size)[0]
