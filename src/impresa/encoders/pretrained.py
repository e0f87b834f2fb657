"""Pretrained backbones: one small class per family, with one interface."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from impresa.encoders.output import Layout
from impresa.encoders.pooling import Summary
from impresa.errors import CheckpointError, ConfigError
from impresa.hub import from_pretrained, read_config, reading, recompute_activations

logger = logging.getLogger(__name__)


class PretrainedBackbone(nn.Module):
    """A tower of another model; a subclass's `forward` takes the inputs of its modality and returns `Features`.

    Args:
        model: the transformers (or timm) module.
        dim: D, the width of tokens and summary.
        summary: the model's own summary of an input, if any.
    """

    blocks_name = ""
    """Name in `model` of the stack of equal blocks that the tokens pass; empty where there is none."""
    has_cls = False
    """True if there is a CLS token for `pooling: cls`, though it is not the model's own summary."""

    def __init__(self, model: Any, *, dim: int, summary: Summary | None) -> None:
        super().__init__()
        self.model = model
        self.dim = dim
        self.summary = summary
        self.pooler: nn.Module | None = None  # makes the summary from the tokens by weights of its own; None if unused
        self.head: nn.Module | None = None  # maps the summary into the model's own embedding space, if it has one
        self.own_width: int | None = None  # outputs of that head, once it has been taken
        self.config: Any = None  # of the whole model, where it is one of transformers

    def save_architecture(self, folder: Path) -> None:
        """Write the config from which the tower can be built without its weights."""
        if self.config is not None:
            self.config.save_pretrained(folder)

    def take_head(self, embed_dim: int) -> nn.Module | None:
        """Remove the head and return it; None if there is none of `embed_dim` outputs."""
        head, self.head = self.head, None
        if head is None:
            return None
        self.own_width = _num_outputs(head, self.dim)
        return head if self.own_width == embed_dim else None

    @property
    def layout(self) -> Layout | None:
        """The places of an image's tokens in what the blocks attend over; None where there are none to name."""
        return None

    @property
    def blocks(self) -> Any:
        """The stack of equal blocks that the tokens pass, or None."""
        return self.model.get_submodule(self.blocks_name) if self.blocks_name else None

    def recompute_activations(self, key: str = "activation_checkpointing") -> None:
        """Recompute each block in the backward pass instead of keeping its activations; a `ConfigError` for `key` where
        the model cannot."""
        recompute_activations(self.model, key)


ENCODERS_OF_PAIRS = ("t5", "mt5", "umt5")
"""Kinds of encoder-decoder models whose encoder alone can be loaded."""
Family = Callable[[Any], PretrainedBackbone]
"""Makes a backbone of one of the towers of a loaded model."""


def load_backbone(
    name: str,
    family_of: Callable[[str], Family | None],
    *,
    key: str,
    modality: str,
    known: str,
    load_weights: bool = True,
) -> PretrainedBackbone:
    """Load the tower of one modality, in float32 on the CPU.

    Args:
        name: a Hugging Face id or the path of a folder made by `save_pretrained`.
        family_of: the family of a `model_type`, if known.
        key, modality, known: for messages: the config key that holds `name`, the tower's input, models that would do.
        load_weights: false builds the tower from its config alone, for weights that come from elsewhere.

    Raises:
        ConfigError: the model cannot be read, or has no tower that we know for this modality.
        CheckpointError: weights of the tower are missing from its files, or have other shapes than its config says.
    """
    config = read_config(key, name)
    family = family_of(config.model_type)
    if family is None:
        fault = f"{name} is a {config.model_type} model, of which we know no tower for {modality}"
        raise ConfigError(f"{key}: {fault}; use {known}")
    with reading(key, name):
        model, info = _build(config, name, load_weights)
    names = {id(tensor): tensor_name for tensor_name, tensor in _named_tensors(model)}
    backbone = family(model)
    backbone.config = config
    if info is not None:
        _check_weights(name, {names[id(tensor)] for _, tensor in _named_tensors(backbone)}, info)
    return backbone


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())


def _build(config: Any, name: str, load_weights: bool) -> tuple[Any, Mapping[str, Any] | None]:
    """The model, and transformers' account of its weights if they are loaded. It is a single tower where the files hold
    one, else the whole model without the heads of its tasks."""
    import transformers

    architecture = (config.architectures or [""])[0]
    kind: Any = transformers.AutoModel
    if architecture.endswith(("VisionModel", "TextModel", "AudioModel", "WithProjection")):
        kind = getattr(transformers, architecture)
    elif config.model_type in ENCODERS_OF_PAIRS:
        kind = transformers.AutoModelForTextEncoding
    if not load_weights:
        is_auto = hasattr(kind, "from_config")
        return (kind.from_config(config, trust_remote_code=False) if is_auto else kind(config)).float(), None
    settings = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    return from_pretrained(kind, name, **settings)


def _check_weights(name: str, kept: set[str], info: Mapping[str, Any]) -> None:
    """Refuse a tower with weights that its files lack; warn of weights in the files that it does not use."""
    if mismatched := sorted(entry[0] for entry in info["mismatched_keys"] if entry[0] in kept):
        raise CheckpointError(f"{name}: {_listed(mismatched)} have other shapes than config.json says; save it again")
    if missing := sorted(kept & set(info["missing_keys"])):
        raise CheckpointError(f"{name}: {_listed(missing)} are not in its files; save the whole model again")
    if unexpected := sorted(info["unexpected_keys"]):
        logger.warning("%s: left out %s, which the tower does not use", name, _listed(unexpected))


def _listed(names: list[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _num_outputs(head: nn.Module, dim: int) -> int:
    linears = [module for module in head.modules() if isinstance(module, nn.Linear)]
    return linears[-1].out_features if linears else dim
