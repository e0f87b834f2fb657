"""Backbones that others trained: one small class per family, all alike from outside.

A backbone takes the inputs of its modality and returns `Features`. The head that follows it in its own model (CLIP's
projection into the joint space) can be taken from it, because a tower keeps it only when nothing else stands between.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from impresa.encoders.pooling import Summary
from impresa.errors import CheckpointError, ConfigError
from impresa.hub import location, read_config, reading, recompute_activations

logger = logging.getLogger(__name__)


class PretrainedBackbone(nn.Module):
    """A tower of another model, seen as ours see theirs.

    A subclass says in `forward` how its inputs become `Features`.

    Args:
        model: the transformers (or timm) module.
        dim: D, the width of tokens and summary.
        summary: what the model itself takes for the whole input, if anything.
    """

    pooler: nn.Module | None
    """The part that makes the summary from the tokens, where it has weights of its own."""
    head: nn.Module | None
    """The map of the summary into the model's own embedding space, if it has one."""
    has_cls: bool
    """There is a CLS token for those who ask for it, though the model does not sum up in it."""

    def __init__(self, model: Any, *, dim: int, summary: Summary | None) -> None:
        super().__init__()
        self.model = model
        self.dim = dim
        self.summary = summary
        self.pooler = None
        self.head = None
        self.has_cls = False
        self.config: Any = None  # of the whole model, where it is one of transformers

    def save_architecture(self, folder: Path) -> None:
        """Write the config that the tower is built from again without its weights."""
        if self.config is not None:
            self.config.save_pretrained(folder)

    def take_head(self, embed_dim: int) -> nn.Module | None:
        """Hand over the head, which the backbone loses; None if there is none of `embed_dim` outputs."""
        head, self.head = self.head, None
        return head if head is not None and _num_outputs(head, self.dim) == embed_dim else None

    def drop_pooler(self) -> None:
        """Drop the part that makes the summary, when nobody reads it, so that no weight is left without a gradient."""
        self.pooler = None

    @property
    def blocks(self) -> nn.ModuleList | nn.Sequential | None:
        """The stack of equal blocks that the tokens pass; None where there is none, or a family has not named it."""
        return None

    def recompute_activations(self) -> None:
        """Recompute each block in the backward pass instead of keeping its activations, where the model can."""
        recompute_activations(self.model)


ENCODERS_OF_PAIRS = ("t5", "mt5", "umt5")
"""Kinds of encoder-decoder models whose encoder alone can be loaded."""
Family = Callable[[Any], PretrainedBackbone]
"""From a whole loaded model to the backbone made of one of its towers."""


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
        family_of: what is made of a model, by its `model_type`.
        key: the config key that holds `name`, for messages.
        modality: what the tower reads, for messages.
        known: which models would do, for messages.
        load_weights: false builds the tower from its config alone, for weights that come from elsewhere.

    Raises:
        ConfigError: the model cannot be read, or has no tower that we know for this modality.
        CheckpointError: weights of the tower are missing from its files, or have other shapes than its config says.
    """
    config = read_config(key, name)
    family = family_of(config.model_type)
    if family is None:
        raise ConfigError(
            f"{key}: {name} is a {config.model_type} model, of which we know no tower for {modality}; use {known}"
        )
    with reading(key, name):
        model, info = _read_model(config, name) if load_weights else (_new_model(config), None)
    names = {id(tensor): tensor_name for tensor_name, tensor in _named_tensors(model)}
    backbone = family(model)
    backbone.config = config
    if info is not None:
        _check_weights(name, {names[id(tensor)] for _, tensor in _named_tensors(backbone)}, info)
    return backbone


def _read_model(config: Any, name: str) -> tuple[Any, Mapping[str, Any]]:
    return _model_class(config).from_pretrained(
        location(name), dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )


def _new_model(config: Any) -> Any:
    kind = _model_class(config)
    return (kind.from_config(config) if hasattr(kind, "from_config") else kind(config)).float()


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _model_class(config: Any) -> Any:
    """The class of a single tower where the files hold one, else the whole model without the heads of its tasks."""
    import transformers

    architecture = (config.architectures or [""])[0]
    if architecture.endswith(("VisionModel", "TextModel", "AudioModel", "WithProjection")):
        return getattr(transformers, architecture)
    if config.model_type in ENCODERS_OF_PAIRS:
        return transformers.AutoModelForTextEncoding
    return transformers.AutoModel


def _check_weights(name: str, kept: set[str], info: Mapping[str, Any]) -> None:
    """Refuse a tower with weights that its files did not give; tell what the files hold beyond it."""
    mismatched = sorted(entry[0] for entry in info["mismatched_keys"] if entry[0] in kept)
    if mismatched:
        raise CheckpointError(f"{name}: {_listed(mismatched)} have other shapes than config.json says; save it again")
    missing = sorted(kept & set(info["missing_keys"]))
    if missing:
        raise CheckpointError(f"{name}: {_listed(missing)} are not in its files; save the whole model again")
    unexpected = sorted(info["unexpected_keys"])
    if unexpected:
        logger.warning("%s: left out %s, which the tower has no place for", name, _listed(unexpected))


def _listed(names: list[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _num_outputs(head: nn.Module, dim: int) -> int:
    """Width of what a head gives for a summary of width `dim`."""
    linears = [module for module in head.modules() if isinstance(module, nn.Linear)]
    return linears[-1].out_features if linears else dim
