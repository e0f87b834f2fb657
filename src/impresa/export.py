"""Folders for other libraries: the language model that a run has adapted, as peft or as transformers reads it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from impresa.config.experiment import DecoderConfig, ExperimentConfig
from impresa.errors import CheckpointError
from impresa.files import replacing_folder, write_atomic
from impresa.hub import location, quietly
from impresa.run_dir.layout import CONFIG, PREPROCESSING, TOKENIZER, WEIGHTS

ENCODERS = "encoders_and_fusion.safetensors"
"""File of an exported adapter: what makes the prefix, under the names that it has in the run."""
_DECODER = "decoder."


def check_exportable(config: ExperimentConfig, run_dir: Path, folder: Path) -> None:
    """Refuse runs that no other library could use, and folders that are taken.

    Raises:
        CheckpointError: it is so.
    """
    decoder = config.decoder
    if decoder is None:
        raise CheckpointError(f"{run_dir}: is an alignment; what can be exported so far is the adapter of a Qwen model")
    if decoder.type == "trm":
        raise CheckpointError(f"{run_dir}: no other library knows its decoder, a trm; use it by impresa.load")
    if not decoder.use_lora:
        raise CheckpointError(f"{run_dir}: was trained without decoder.use_lora and has no adapter to export")
    if decoder.use_trm_recursion:
        raise CheckpointError(f"{run_dir}: no plain Qwen model holds its latent recursion; use it by impresa.load")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointError(f"{folder}: is there already; name a new or an empty folder")


def export_run(run_dir: Path, folder: Path, *, merge: bool = False) -> Path:
    """Write the language model of a finished vision-language run to a folder, whole or not at all.

    Args:
        run_dir: a run with a Qwen decoder and low-rank adapters.
        folder: where to; it must not exist, or be empty.
        merge: add the adapters to the unquantised base and write a plain transformers model in float32. Otherwise the
            adapters are written in peft's format, and beside them what makes the prefix.

    Returns:
        The folder.

    Raises:
        CheckpointError: the run is damaged or cannot be exported, or the folder is taken.
        ConfigError: the base model cannot be read.
    """
    # Imported here, so that `check_exportable` needs no torch.
    from impresa.run_dir.integrity import verify
    from impresa.run_dir.load import read_run_config
    from impresa.tasks.answering.language_model import revision_of_language_model

    config = read_run_config(run_dir)
    check_exportable(config, run_dir, folder)
    verify(run_dir)
    assert config.decoder is not None
    revision = revision_of_language_model(run_dir, config.decoder)
    with replacing_folder(folder) as temporary:
        write = _write_merged if merge else _write_adapter
        write_atomic(temporary / "README.md", write(run_dir, config, revision, temporary))
        _tokenizer(run_dir).save_pretrained(temporary)
    return folder


def _write_merged(run_dir: Path, config: ExperimentConfig, revision: str | None, folder: Path) -> str:
    """Write the merged model; returns the README."""
    from impresa.decoders.qwen import merge_adapter

    decoder = config.decoder
    assert decoder is not None
    state, _ = _weights(run_dir)
    with quietly():
        merge_adapter(decoder, state, revision=revision).save_pretrained(folder)
    return _about_merged(config.name, _base(decoder))


def _write_adapter(run_dir: Path, config: ExperimentConfig, revision: str | None, folder: Path) -> str:
    """Write the adapters and what belongs to them; returns the README."""
    from impresa.decoders.lora import save_adapters
    from impresa.run_dir.weights import write_weights

    decoder = config.decoder
    assert decoder is not None
    state, rest = _weights(run_dir)
    save_adapters(decoder.lora, state, folder, base=_base(decoder), revision=revision)
    write_weights(folder / ENCODERS, rest)
    for name in (CONFIG, PREPROCESSING):
        shutil.copy(run_dir / name, folder)
    return _about_adapter(config.name, _base(decoder), revision)


def _weights(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run's trained weights of its decoder, under the decoder's own names, and all others."""
    from impresa.run_dir.weights import read_weights

    weights = read_weights(run_dir / WEIGHTS)
    decoder = {name.removeprefix(_DECODER): value for name, value in weights.items() if name.startswith(_DECODER)}
    return decoder, {name: value for name, value in weights.items() if not name.startswith(_DECODER)}


def _base(decoder: DecoderConfig) -> str:
    """Id of the base model, or its whole path."""
    name = location(decoder.model)
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _tokenizer(run_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(run_dir / TOKENIZER)


def _about_adapter(name: str, base: str, revision: str | None) -> str:
    where = repr(base) + (f", revision={revision!r}" if revision else "")
    return f"""---
library_name: peft
base_model: {base}
tags:
- lora
- impresa
---

# Adapter of {name}

Low-rank adapters for `{base}`, trained by Impresa to answer questions about images.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({where}), "this folder")
```

| file | what it is |
| --- | --- |
| `adapter_config.json`, `adapter_model.safetensors` | the adapters, in peft's format |
| `tokenizer.json` and what belongs to it | the tokenizer, with the chat template |
| `{ENCODERS}` | the encoders and the fusion, which make the prefix that stands before the text |
| `{CONFIG}`, `{PREPROCESSING}` | the experiment, and how images become pixels |

The adapted model alone sees no images. With encoders, fusion and adapters together, the run that this was exported from
answers by `impresa ask`.
"""


def _about_merged(name: str, base: str) -> str:
    return f"""---
library_name: transformers
base_model: {base}
tags:
- impresa
---

# Language model of {name}

`{base}` with the adapters merged in that Impresa has trained to answer questions about images; float32, unquantised.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this folder")
tokenizer = AutoTokenizer.from_pretrained("this folder")
```

It expects the prefix of the run's encoders before the text, and sees no images without; the run that this was exported
from answers by `impresa ask`. In another run it may be `decoder.model`.
"""
