"""Impresa: align images, text and sound, ask a language model about them, and measure which setting helped."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from impresa.auto_registration import register_classes

if TYPE_CHECKING:
    from impresa.run_dir.load import load as load
    from impresa.search.cosine import semantic_search as semantic_search
    from impresa.search.index import open_index as open_index

__version__ = "0.1.0"
__all__ = ["load", "open_index", "semantic_search"]


def _pass_on_cache_folder() -> None:
    """Hand the value of TRANSFORMERS_CACHE to the variable that is read instead of it since transformers 5."""
    folder = os.environ.get("TRANSFORMERS_CACHE")
    if not folder or "HF_HUB_CACHE" in os.environ:
        return
    notice = f"TRANSFORMERS_CACHE is passed on as HF_HUB_CACHE={folder}"
    if "huggingface_hub.constants" in sys.modules:  # which has read its variables by then, once for all
        notice = "TRANSFORMERS_CACHE: not read by transformers 5; import impresa before it, or set HF_HUB_CACHE"
    else:
        os.environ["HF_HUB_CACHE"] = folder
    sys.stderr.write(f"{notice}\n")


_pass_on_cache_folder()
register_classes()


_HOME = {
    "load": "impresa.run_dir.load",
    "open_index": "impresa.search.index",
    "semantic_search": "impresa.search.cosine",
}


def __getattr__(name: str) -> Any:
    # torch is imported with the first use, so that `import impresa` stays fast.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'impresa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
