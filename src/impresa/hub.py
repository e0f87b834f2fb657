"""Reading what others trained, from the Hugging Face hub, its cache, or a folder: quietly, and with clear refusals."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from impresa.errors import ConfigError, ImpresaError

TIMM = "timm:"
"""What stands before the name of one of timm's models."""
_SAMPLED_BYTES = 1 << 20


@contextmanager
def reading(key: str, name: str) -> Iterator[None]:
    """Turn any failure to read `name` into one line for the config key that holds it.

    transformers' own notices are silenced meanwhile: what matters in them, the caller says itself.

    Raises:
        ConfigError: in place of whatever the hub, a folder or a damaged file raised.
    """
    try:
        with quietly():
            yield
    except ImpresaError:
        raise
    except Exception as error:  # the hub, the formats and the libraries behind them raise nearly everything
        raise ConfigError(f"{key}: {name} cannot be loaded; {_reason(name, error)}") from error


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers' notices away, and its progress bars where nobody sees them move."""
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


def read_config(key: str, name: str) -> Any:
    """The transformers configuration of a model by id or path.

    Raises:
        ConfigError: there is none, or transformers does not know the kind of model.
    """
    from transformers import AutoConfig

    with reading(key, name):
        return AutoConfig.from_pretrained(location(name))


def import_timm(key: str, name: str) -> Any:
    """The library timm, which is not one of our dependencies.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"{key}: {name} needs timm, which cannot be imported ({error}); pip install timm") from error
    return timm


def import_optional(key: str, package: str, extra: str) -> Any:
    """A library that only some settings need.

    Args:
        key: the config key that needs it.
        package: its name.
        extra: which of our optional dependencies it belongs to.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        install = f"pip install 'impresa[{extra}]'"
        raise ConfigError(f"{key}: it needs {package}, which cannot be imported ({error}); {install}") from error


def identity(key: str, name: str) -> str:
    """What tells a model from others of the same name: the commit of one from the hub, a digest of a folder's files.

    Of each file the name, the size and the first and last megabyte count, so that large models take no longer.

    Raises:
        ConfigError: there is no such model.
    """
    folder = Path(location(name))
    if not folder.is_dir():
        return f"commit {getattr(read_config(key, name), '_commit_hash', None)}"
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors*")) + sorted(folder.glob("*.bin*")) + [folder / "config.json"]:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLED_BYTES))
            file.seek(max(size - _SAMPLED_BYTES, 0))
            digest.update(file.read(_SAMPLED_BYTES))
    return f"sha256 {digest.hexdigest()}"


def location(name: str) -> str:
    """The id or path as transformers takes it: `~` is the home folder."""
    return os.path.expanduser(name)


def _reason(name: str, error: Exception) -> str:
    first_line = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    folder = Path(location(name))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            return "the folder has no config.json; give one that was made by save_pretrained"
        return f"{first_line}; save it again with save_pretrained"
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        return "there is no such folder; give the path of one that was made by save_pretrained"
    if isinstance(error, OSError):
        return f"no folder has this name and the hub does not give it ({first_line}); check the id, or go online once"
    return first_line
