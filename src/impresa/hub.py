"""Reading pretrained models from the Hugging Face hub, its cache, or a folder, with errors that name the config key."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from threading import Thread
from typing import Any

from impresa.config.experiment import ExperimentConfig
from impresa.config.locations import check_model, models_of
from impresa.errors import ConfigError, ImpresaError
from impresa.json_files import parse_json, read_text

_SAMPLED_BYTES = 1 << 20
_MOST_LABELS = 100_000
_PROXY_REFUSES = 407
_PATIENCE_S, _REMEMBERED_S = 2.0, 60
"""How long the hub may take to answer at all, where `HF_HUB_ETAG_TIMEOUT` does not say, and how long that counts."""


@contextmanager
def reading(key: str, name: str) -> Iterator[None]:
    """Turn any failure to read `name` into one line for the config key that holds it; transformers' own notices are
    silenced meanwhile. A name that looks like a path is not asked of the hub.

    Raises:
        ConfigError: there is no such model, or a file of it is damaged.
    """
    check_model(key, name)
    try:
        with quietly(), nullcontext() if is_folder(name) or can_be_fetched() else offline():
            yield
    except ImpresaError:
        raise
    except Exception as error:  # the hub, the formats and the libraries behind them raise nearly everything
        raise ConfigError(f"{key}: {name} cannot be loaded; {_reason(name, error)}") from error


@contextmanager
def offline(*others: Any) -> Iterator[None]:
    """Let the hub's library read its cache alone: where the hub does not answer it would try again for a minute.
    `others` are modules of further libraries, with a switch of the same name."""
    from huggingface_hub import constants

    modules = (constants, *others)
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def is_at_hand(name: str) -> bool:
    """True for a folder, and for a model of the hub whose description and weights are in its cache."""
    from huggingface_hub import try_to_load_from_cache

    if is_folder(name):
        return True
    described, *weights = (
        isinstance(try_to_load_from_cache(name, file), str)
        for file in ("config.json", "model.safetensors", "pytorch_model.bin")
    )
    return described and any(weights)


def check_reach(config: ExperimentConfig) -> None:
    """Refuse a model of the hub of which nothing is in the cache, where the hub does not answer: the libraries that
    would find the same take seconds to import.

    Raises:
        ConfigError: there is such a model.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for key, name in models_of(config):
        with suppress(HFValidationError):  # no name of the hub; who reads it says more
            if is_folder(name) or try_to_load_from_cache(name, "config.json") is not None or can_be_fetched():
                continue
            raise ConfigError(f"{key}: {name} cannot be loaded; {_why_not_given(name, '')}")


def can_be_fetched() -> bool:
    """True where the hub may be asked and answers."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _answers(int(time.monotonic() // _REMEMBERED_S))


@lru_cache(maxsize=1)
def _answers(_minute: int) -> bool:
    """True if the hub gives any answer in time. The look-up of its name knows no time limit, so that a thread waits."""
    from huggingface_hub import constants, get_session

    patience = _PATIENCE_S if "HF_HUB_ETAG_TIMEOUT" not in os.environ else constants.HF_HUB_ETAG_TIMEOUT
    answered: list[int] = []

    def ask() -> None:
        with suppress(Exception):  # of the library for HTTP, whichever it is; no answer is all that counts
            answered.append(get_session().head(constants.ENDPOINT, timeout=patience).status_code)

    with suppress(Exception):
        get_session()  # it is kept; the imports are no time of the hub's
    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience)
    return any(status < 500 and status != _PROXY_REFUSES for status in answered)


@contextmanager
def quietly() -> Iterator[None]:
    """Silence transformers' notices, and its progress bars where the output is no terminal."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


class NeedsCode(ValueError):  # noqa: N818 - it is the reason, not the error that users see
    """A model, tokenizer or processor whose files bring Python code that would have to run."""


def from_pretrained(kind: Any, name: str | Path, **settings: Any) -> Any:
    """`kind.from_pretrained(name)` of transformers, without running code that lies beside the weights.

    transformers asks on the terminal where it is not told, and a user may say yes. Nothing else in the package calls
    `from_pretrained`.

    Args:
        kind: a class of transformers.
        name: id or path.
        settings: further arguments.

    Raises:
        NeedsCode: the files cannot be read without their own code.
        ValueError: they name another class than one of this kind, or a library panicked over them.
    """
    try:
        found = kind.from_pretrained(location(str(name)), trust_remote_code=False, **settings)
    except ValueError as error:
        if "custom code" not in str(error):
            raise
        raise NeedsCode("it needs Python code of its own, which is never run; use a model of transformers") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of libraries in Rust, which is no Exception
            raise
        raise ValueError(str(error)) from error
    _check_kind(kind, found)
    return found


def _check_kind(kind: Any, found: Any) -> None:
    """transformers takes any class of its own that the files name."""
    import transformers

    base: Any = {
        "AutoTokenizer": transformers.PreTrainedTokenizerBase,
        "AutoImageProcessor": transformers.ImageProcessingMixin,
        "AutoFeatureExtractor": transformers.FeatureExtractionMixin,
    }.get(kind.__name__, object)
    if not isinstance(found, base):
        raise ValueError(f"its files name the class {type(found).__name__}, which is none of {kind.__name__}")
    model = found[0] if isinstance(found, tuple) else found
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError("it is an adapter of another model; merge the two and save the whole")


def read_config(key: str, name: str, revision: str | None = None) -> Any:
    """The transformers configuration of a model. Arguments and errors: see `snapshot`."""
    from transformers import AutoConfig

    described = snapshot(key, name, revision) / "config.json"
    with reading(key, name):
        if any(number > _MOST_LABELS for number in _labels(described)):
            raise ValueError(f"its config.json has more than {_MOST_LABELS} labels")  # each would be given a name
        config = from_pretrained(AutoConfig, name, revision=revision)
        parts = (config, *(getattr(config, part, None) for part in config.sub_configs))
        if any("/" in str(getattr(part, "_attn_implementation", None)) for part in parts):
            raise NeedsCode("it names a kernel of the hub, which is code and never run; remove attn_implementation")
        return config


def _labels(described: Path) -> Iterator[float]:
    """The numbers of labels in a `config.json`, of the whole and of its parts; none in a damaged file, of which
    transformers tells more."""
    try:
        level = [parse_json(read_text(described))] if described.is_file() else []
    except ValueError:
        return
    while level:
        parts = [part for part in level if isinstance(part, dict)]
        yield from (part["num_labels"] for part in parts if isinstance(part.get("num_labels"), int | float))
        level = [value for part in parts for value in part.values()]


def import_optional(key: str, package: str, install: str, *, user: str = "it") -> Any:
    """A library that only some settings need.

    Args:
        key: the config key that needs it.
        package: its name.
        install: the argument of pip.
        user: the model that needs it, for messages.

    Raises:
        ConfigError: the library cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        fault = f"{user} needs {package}, which cannot be imported ({error})"
        raise ConfigError(f"{key}: {fault}; pip install {install}") from error


def recompute_activations(model: Any, key: str = "activation_checkpointing") -> None:
    """Let a model of transformers recompute its blocks in the backward pass instead of keeping their activations.

    Args:
        model: the model.
        key: the config key that asks for it, for messages.

    Raises:
        ConfigError: transformers has no recomputation for this model.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        name = type(model).__name__
        raise ConfigError(f"{key}: {name} cannot recompute its activations; turn it off")
    # transformers will drop the older name of the method.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def is_folder(name: str) -> bool:
    """True if `name` is the path of a folder, and not an id on the hub."""
    return Path(location(name)).is_dir()


def snapshot(key: str, name: str, revision: str | None = None) -> Path:
    """The folder with the files of a model: `name` itself, or that of the commit in the hub's cache, named after it.

    Args:
        key: the config key that holds `name`.
        name: id or path.
        revision: commit of a model from the hub; None is the newest.

    Raises:
        ConfigError: there is no such model.
    """
    from transformers.utils import cached_file

    if is_folder(name):
        return Path(location(name))
    with reading(key, name):
        return Path(str(cached_file(name, "config.json", revision=revision))).parent


def digest(key: str, name: str, revision: str | None = None) -> str:
    """A digest of a model's weights and its `config.json`, the same wherever they are stored. Arguments and errors: see
    `snapshot`.

    It reads the name, the size and the first and last megabyte of each file, so that large models take no longer.
    """
    folder, found = snapshot(key, name, revision), hashlib.sha256()
    with reading(key, name):
        for path in (*_weights_in(folder), folder / "config.json"):
            size = path.stat().st_size
            found.update(f"{path.name} {size} ".encode())
            with path.open("rb") as file:
                found.update(file.read(_SAMPLED_BYTES))
                file.seek(max(size - _SAMPLED_BYTES, 0))
                found.update(file.read(_SAMPLED_BYTES))
    return f"sha256 {found.hexdigest()}"


def size_of_weights(key: str, name: str, revision: str | None = None) -> int:
    """Bytes of a model's weights on disk. Arguments and errors: see `snapshot`."""
    folder = snapshot(key, name, revision)
    with reading(key, name):
        return sum(path.stat().st_size for path in _weights_in(folder))


def _weights_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors*")) or sorted(folder.glob("*.bin*"))


def location(name: str) -> str:
    """The id or path for transformers: `~` is expanded to the home folder."""
    return os.path.expanduser(name)


def _reason(name: str, error: Exception) -> str:
    if isinstance(error, NeedsCode):
        return str(error)
    if "weights_only" in str(error):  # torch's advice is to read them without this protection
        return "its weights are pickled, with more than tensors in them, and are not read; save it with safetensors"
    first_line = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    folder = Path(location(name))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            return "the folder has no config.json; give one that was made by save_pretrained"
        return f"{first_line}; save it again with save_pretrained"
    return _why_not_given(name, first_line) if isinstance(error, OSError) else first_line


def _why_not_given(name: str, first_line: str) -> str:
    """Why there is no model of this name, and what to do, with or without a network."""
    from huggingface_hub import constants

    if not (away := hub_is_away(f"`hf download {name}`", constants.HF_HUB_CACHE)):
        return f"no folder has this name and the hub does not give it ({first_line}); check the id"
    return f"no folder has this name, it is not in the cache, and {away}"


def hub_is_away(command: str, folder: str) -> str | None:
    """Why the hub is not asked, and how to do without it: by a command where there is a network, and the folder that it
    fills. None if the hub is there."""
    from huggingface_hub import constants

    if can_be_fetched():
        return None
    why = (
        "HF_HUB_OFFLINE forbids asking the hub" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
    )
    return f"{why}; where there is a network, {command} there, copy {folder} here and set HF_HUB_OFFLINE=1"
