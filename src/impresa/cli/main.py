"""The command `impresa`: finds the verb, imports its module and turns errors into lines and exit codes.

Exit codes: 0 done, 1 runs of a study have failed (each has a line) or the doctor finds a fault, 2 the user has
something to fix (or the machine: a full disk, too little memory), 75 a scheduler has stopped the training, which may be
queued again, 130 interrupted. A traceback is always a bug of ours.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from impresa import __version__
from impresa.errors import (
    INTERRUPTED,
    REQUEUE,
    USER_ERROR,
    ImpresaError,
    Requeue,
    is_out_of_memory,
    reason_of,
    system_error,
)
from impresa.foreign_text import printable
from impresa.streams import accept_any_text

_OF_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""The errors of printing when the file behind standard output is full; all other writing names its file."""


class _Parser(argparse.ArgumentParser):
    """argparse's parser, whose faults are one line like all others."""

    def error(self, message: str) -> NoReturn:
        raise ImpresaError(f"{self.prog}: {message}; {self.prog} --help tells what there is")


VERBS = {
    "train": "train a model and write its run directory",
    "doctor": "examine this machine before training: devices, disk, data, and what will be slow",
    "checkpoint": "convert a checkpoint: parts, as trainer.strategy=fsdp writes them, or one file",
    "ablate": "change settings of a config, train each with several seeds, and show what changed",
    "eval": "evaluate a run on its own or on other data",
    "interpolate": "interpolate the weights of a pretrained pair and its fine-tuned run, and choose the best",
    "encode": "embed a folder or a table, and write the vectors to a file",
    "index": "make an index of pictures to search in, or bring it up to date",
    "search": "search an index by words, pictures or sounds",
    "search-bench": "measure the ways to search an index, and keep the fastest with enough recall",
    "map": "draw the embedding space of a run in two dimensions",
    "ask": "answer a question about images",
    "caption": "describe images",
    "chat": "talk about one image, line by line",
    "explain": "draw what a run looks at in an image",
    "export": "write a run to a folder for other libraries: transformers, sentence-transformers, open_clip, ONNX, peft",
    "push": "put a run on the Hugging Face hub, with a card of metrics, licence and limits",
    "serve": "answer requests over HTTP, as the clients of OpenAI and others send them",
    "data": "check, fetch or pack your data, or export the embedded data",
    "config": "show a config, list the shipped ones, print the JSON schema",
}
"""Modules of `impresa.cli` with `add_arguments` and `run`, and their lines in the help. Each module's own help is its
docstring."""
_TAKING_OVERRIDES = ("train", "doctor", "ablate", "config", "data", "encode", "eval", "index", "interpolate", "map")
_NAMING_DATA = ("data", "encode", "eval", "index", "interpolate", "map")
"""Verbs that take the path of data, and overrides of `dataset` alone."""
_OVERVIEW = """\
usage: impresa VERB ...

Align images, text and sound, ask a language model about them, and measure which setting helped.

{}

impresa VERB --help tells more. Settings are written optimization.lr=1e-4 or --optimization.lr 1e-4."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    accept_any_text()
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except ImpresaError as error:
        print(*map(printable, error.lines), sep="\n", file=sys.stderr)
        return USER_ERROR
    except Requeue:
        return REQUEUE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _give_up_output()  # the reader (as `head`) has left
        return 0
    except Exception as error:
        line = _fault_of_the_machine(error)
        if line is None:
            raise
        print(printable(line), file=sys.stderr)
        return USER_ERROR


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, VERBS))
        print(_OVERVIEW.format("\n".join(f"  {name:<{width}}  {line}" for name, line in VERBS.items())))
        return 0 if words else USER_ERROR
    if words[0] == "--version":
        print(f"impresa {__version__}")
        return 0
    name, *rest = words
    if name not in VERBS:
        from impresa.config.describe import did_you_mean, listed

        raise ImpresaError(f"{name}: unknown verb; {did_you_mean(name, VERBS)}there are {listed(VERBS, 'and')}")
    module = import_module(f"impresa.cli.{name.replace('-', '_')}")
    parser = _Parser(prog=f"impresa {name}", description=module.__doc__, allow_abbrev=False)
    module.add_arguments(parser)
    overrides: list[str] = []
    if name in _TAKING_OVERRIDES:
        from impresa.cli.overrides import options, split_overrides

        valued = set(options(parser, with_value=True))
        rest, overrides = split_overrides(rest, valued, names_data=name in _NAMING_DATA)
    # Options may stand between images and question; argparse cannot have that beside sub-commands.
    has_actions = any(isinstance(action, argparse._SubParsersAction) for action in parser._actions)
    try:
        args, unknown = (parser.parse_known_args if has_actions else parser.parse_known_intermixed_args)(rest)
    except SystemExit:  # it has printed the help
        return 0
    if unknown:
        raise ImpresaError(_unknown_argument(name, unknown[0], parser))
    code: int = module.run(args, overrides) or 0
    return code


def _fault_of_the_machine(error: Exception) -> str | None:
    """The line for memory that ran out and for a file that cannot be read or written; None for anything else."""
    if is_out_of_memory(error):
        return "memory ran out; smaller batches (--batch-size), a smaller model or another --device need less"
    found = system_error(error)
    if found is None:
        return None
    if found.filename is None and found.errno in _OF_OUTPUT:
        _give_up_output()
        return f"standard output: {reason_of(found)}"
    return reason_of(found)


def _give_up_output() -> None:
    """Nothing more can be printed, and Python would complain of that once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unknown_argument(verb: str, word: str, parser: argparse.ArgumentParser) -> str:
    """The line for an argument that is neither an option nor a key; a key may be written without its part."""
    from impresa.cli.overrides import options
    from impresa.config.describe import nearest
    from impresa.config.memory_vlm import SCHEMAS
    from impresa.config.tree import known_keys

    known = {option: option for option in options(parser)}
    if verb in _TAKING_OVERRIDES:
        keys = (key for schema in reversed(SCHEMAS.values()) for key in known_keys(schema))
        keys = (key for key in keys if verb not in _NAMING_DATA or key.startswith("dataset."))
        known = {f"--{key.rpartition('.')[2]}": f"--{key}" for key in keys} | known
    near = nearest(word.partition("=")[0], known) if word.startswith("-") else None
    hint = f"did you mean {known[near]}? " if near else ""
    return f"{word}: unknown argument; {hint}impresa {verb} --help tells what there is"


if __name__ == "__main__":
    sys.exit(main())
