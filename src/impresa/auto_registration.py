"""Lets transformers' `AutoConfig` and `AutoProcessor` know our classes once impresa is imported.

`import impresa` imports no transformers for it: what is there already is told at once, and the rest as soon as somebody
imports it. The config then tells `AutoModel` of the model.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_AUTO = "transformers.models.auto."
_MODULES = tuple(_AUTO + name for name in ("configuration_auto", "processing_auto"))


def register_classes() -> None:
    """Register the config and the processor, each once transformers' own module for it is imported."""
    for name in _MODULES:
        if name in sys.modules:
            _register(name, sys.modules[name])
    if any(name not in sys.modules for name in _MODULES):
        sys.meta_path.insert(0, _Watch())


def _register(name: str, module: ModuleType) -> None:
    from impresa.export import auto_classes

    match name.removeprefix(_AUTO):
        case "configuration_auto":
            module.AutoConfig.register("impresa", auto_classes.ImpresaConfig, exist_ok=True)
            auto_classes.ImpresaConfig.before_use = staticmethod(_register_model)
        case "processing_auto":
            module.AutoProcessor.register(auto_classes.ImpresaConfig, auto_classes.ImpresaProcessor, exist_ok=True)


def _register_model() -> None:
    from transformers import AutoModel

    from impresa.export.auto_classes import ImpresaConfig
    from impresa.export.auto_model import ImpresaModel

    AutoModel.register(ImpresaConfig, ImpresaModel, exist_ok=True)


class _Watch(MetaPathFinder):
    """Has a module of transformers' found as ever, and registers our class when it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _MODULES:
            return None
        sys.meta_path.remove(self)
        try:
            spec = find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(fullname, module)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
