"""Impresa: align images, text and sound, ask a language model about them, and measure which switch paid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from impresa.run_dir.load import load as load

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # torch is imported with the first use of a model, so that `import impresa` stays fast.
    if name == "load":
        from impresa.run_dir.load import load

        return load
    raise AttributeError(f"module 'impresa' has no attribute {name!r}")
