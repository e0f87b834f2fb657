"""A second stage of training: a new vision-language model that starts from the weights of a finished run."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

from impresa.decoders.lora import is_adapter
from impresa.errors import CheckpointError
from impresa.run_dir.layout import WEIGHTS
from impresa.run_dir.weights import read_weights
from impresa.tasks.answering.language_model import is_identified
from impresa.tasks.answering.model import VisionLanguageModel

_RECURSION, _BASE = "decoder.recursion.", "decoder.model."
"""Prefixes in the state dict: the recursion behind the language model, and that model itself."""


def start_from(model: VisionLanguageModel, run_dir: Path) -> int:
    """Give a new model the weights of a finished vision-language run.

    What a second stage may have beyond them keeps its start: adapters, recursion, and a language model that was frozen
    in the run and is trained now. That it is the same one, `revision_of_language_model` checks.

    Returns:
        The number of tensors taken over.

    Raises:
        CheckpointError: the run has weights that the model has no place for, or that it would not keep; or the model
            has others that the run lacks, which would stay at random.
    """
    try:
        weights = read_weights(run_dir / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{run_dir / WEIGHTS}: {error}; restore the run from a copy") from error
    own, kept = model.state_dict(), model.state_to_save()
    for name, tensor in weights.items():
        if name not in own or own[name].shape != tensor.shape:
            raise CheckpointError(f"decoder.init_from: {run_dir} has {name}, which this model has not; make them alike")
        if name not in kept:
            fault = f"{run_dir} has trained {name}, which is frozen here and would not be kept"
            raise CheckpointError(f"decoder.init_from: {fault}; train it here too")
    # These are pretrained, or change nothing at first.
    may_be_new = [_BASE] if is_identified(run_dir) else []
    may_be_new += [] if any(name.startswith(_RECURSION) for name in weights) else [_RECURSION]
    for name in sorted(kept.keys() - weights.keys()):
        if not (is_adapter(name) or name.startswith(tuple(may_be_new))):
            fault = f"this model has {name}, which {run_dir} has not and which would stay at random"
            raise CheckpointError(f"decoder.init_from: {fault}; make them alike")
    model.load_state_dict(weights, strict=False)
    return len(weights)
