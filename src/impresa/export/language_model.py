"""The language model that a run has trained, as peft or as transformers reads it."""

from __future__ import annotations

import shutil
from pathlib import Path

from impresa.config.experiment import ExperimentConfig
from impresa.files import write_atomic
from impresa.hub import from_pretrained, location, quietly
from impresa.reports.rendering import render
from impresa.run_dir.layout import CONFIG, MODEL_CARD, PREPROCESSING, TOKENIZER, WEIGHTS

ENCODERS = "encoders_and_fusion.safetensors"
"""File of an exported adapter: the parts that make the prefix, under the names that they have in the run."""
_DECODER = "decoder."


def write_language_model(config: ExperimentConfig, run_dir: Path, folder: Path, *, merge: bool) -> None:
    """Write the language model of a vision-language run to a folder.

    Args:
        config: of the run.
        run_dir: a run with a pretrained decoder, with low-rank adapters or trained whole.
        folder: an empty one.
        merge: write a plain transformers model in float32, the adapters added to the unquantised base. Otherwise
            adapters are written in peft's format, and beside them what makes the prefix. A model that was trained whole
            is a plain one in any case.

    Raises:
        CheckpointError: the base model is not the one that the run was trained with.
        ConfigError: the base model cannot be read.
    """
    from transformers import AutoTokenizer

    from impresa.decoders.lora import save_adapters
    from impresa.decoders.pretrained import merge_adapter, whole_model
    from impresa.run_dir.weights import read_weights, write_weights
    from impresa.tasks.answering.language_model import LANGUAGE_MODEL, revision_of_language_model

    decoder = config.decoder
    assert decoder is not None
    revision = revision_of_language_model(run_dir, decoder)
    base = location(decoder.model)
    if Path(base).is_dir():
        base = str(Path(base).resolve())
    weights = read_weights(run_dir / WEIGHTS)
    trained = {name.removeprefix(_DECODER): value for name, value in weights.items() if name.startswith(_DECODER)}
    if merge or not decoder.use_lora:
        with quietly():
            if decoder.use_lora:
                model = merge_adapter(decoder, trained, revision=revision)
            else:
                model = whole_model(run_dir / LANGUAGE_MODEL, trained)
            model.save_pretrained(folder)
        readme = render("plain.md.j2", name=config.name, base=base, has_adapters=decoder.use_lora)
    else:
        save_adapters(decoder.lora, trained, folder, base=base, revision=revision)
        write_weights(folder / ENCODERS, {n: t for n, t in weights.items() if not n.startswith(_DECODER)})
        for name in (CONFIG, PREPROCESSING):
            shutil.copy(run_dir / name, folder)
        arguments = repr(base) + (f", revision={revision!r}" if revision else "")
        readme = render("adapter.md.j2", name=config.name, base=base, base_arguments=arguments, encoders=ENCODERS)
    write_atomic(folder / MODEL_CARD, readme)
    from_pretrained(AutoTokenizer, run_dir / TOKENIZER).save_pretrained(folder)
