"""Errors that a user can fix: one line each, naming the thing and the fix.

The command line turns every `ImpresaError` into its lines on standard error and exit code 2, without a traceback.
Anything else that escapes is a bug of ours and keeps its traceback, unless the machine is at fault: a file that could
not be written, or memory that ran out. The functions at the end find that out.
"""

from __future__ import annotations

import errno
import os
import re

USER_ERROR = 2
"""Exit code of a command that a user, or the machine, is at fault for."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""
REQUEUE = 75
"""Exit code of a training that a scheduler has stopped: started again, it goes on (`EX_TEMPFAIL` of sysexits.h)."""


class Requeue(KeyboardInterrupt):
    """A scheduler has stopped the training, which goes on when it is started again."""


class ImpresaError(Exception):
    """A fault of the input, described by one or more lines that say what is wrong and what would be right.

    A library's own words in one of them may have several lines; they are joined.
    """

    def __init__(self, *lines: str) -> None:
        self.lines = tuple(" ".join(line.splitlines()) for line in lines)
        super().__init__("\n".join(self.lines))


class ConfigError(ImpresaError):
    """The configuration cannot be run: each line reads `key: what is wrong; what would be right`."""


class DataError(ImpresaError):
    """Images, captions or the files that hold them cannot be used."""


class CheckpointError(ImpresaError):
    """A run directory or a checkpoint is missing, incomplete or does not fit."""


class TrainingError(ImpresaError):
    """A training run cannot go on, for example because it diverged."""


_OF_RUST = re.compile(r"\(os error (\d+)\)")
"""How libraries that are written in Rust spell the number of a system error."""
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|STATUS_ALLOC_FAILED")
"""How torch says it, for a GPU and for the CPU."""


def system_error(error: BaseException) -> OSError | None:
    """The system's error behind an exception of whatever was reading or writing a file; None where there is none.

    Libraries in Rust spell its number in their message, and torch's C++ raises a `RuntimeError` after it. A broken pipe
    is none: whoever read has left.
    """
    cause = error.__context__ if type(error) is RuntimeError else error
    if isinstance(cause, OSError):
        return None if cause.errno is None or isinstance(cause, BrokenPipeError) else cause
    found = _OF_RUST.search(str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def reason_of(error: OSError) -> str:
    """A system error as `path: reason`, or the reason alone where no file is known."""
    name, reason = error.filename, error.strerror or str(error)
    return reason if name is None else f"{os.fsdecode(name) if isinstance(name, bytes) else name}: {reason}"


def is_out_of_memory(error: BaseException) -> bool:
    """True where memory ran out, that of the machine or of a GPU."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))
    )
