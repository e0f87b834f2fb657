"""Errors that a user can fix: one line each, naming the thing and the fix.

The command line turns every `ImpresaError` into its lines on standard error and exit code 2, without a traceback.
Anything else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class ImpresaError(Exception):
    """A fault of the input, described by one or more lines that say what is wrong and what would be right."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class ConfigError(ImpresaError):
    """The configuration cannot be run: each line reads `key: what is wrong; what would be right`."""


class DataError(ImpresaError):
    """Images, captions or the files that hold them cannot be used."""


class CheckpointError(ImpresaError):
    """A run directory or a checkpoint is missing, incomplete or does not fit."""


class TrainingError(ImpresaError):
    """A training run cannot go on, for example because it diverged."""
