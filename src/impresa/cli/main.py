"""The command `impresa`: finds the verb, imports its module and turns errors into lines and exit codes.

Exit codes: 0 done, 2 the user has something to fix, 130 interrupted. A traceback is always a bug of ours.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from impresa import __version__
from impresa.errors import ImpresaError

USER_ERROR = 2
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """argparse's parser, whose faults are one line like all others."""

    def error(self, message: str) -> NoReturn:
        raise ImpresaError(f"{self.prog}: {message}; {self.prog} --help tells what there is")


VERBS = {
    "train": "train a model and write its run directory",
    "eval": "evaluate a run on its own or on other data",
    "ask": "answer a question about images",
    "caption": "describe images",
    "chat": "talk about one image, line by line",
    "export": "write the language model that a run has trained as a folder for other libraries",
    "data": "export the embedded data, or check your own",
    "config": "show a config, list the shipped ones, print the JSON schema",
}
"""Modules of `impresa.cli` with `add_arguments` and `run`, and their lines in the help. Each module's own help is its
docstring."""
_TAKING_OVERRIDES = ("train", "config", "data", "eval")
_NAMING_DATA = ("data", "eval")
"""Verbs that take the path of data, and overrides of `dataset` alone."""
_OVERVIEW = """\
usage: impresa VERB ...

Align images, text and sound, ask a language model about them, and measure which switch paid.

{}

impresa VERB --help tells more. Settings are written optimization.lr=1e-4 or --optimization.lr 1e-4."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except ImpresaError as error:
        print(*error.lines, sep="\n", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (as `head`) has left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 0


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
    module = import_module(f"impresa.cli.{name}")
    parser = _Parser(prog=f"impresa {name}", description=module.__doc__, allow_abbrev=False)
    module.add_arguments(parser)
    overrides: list[str] = []
    if name in _TAKING_OVERRIDES:
        from impresa.cli.overrides import options, split_overrides

        valued = set(options(parser, with_value=True))
        rest, overrides = split_overrides(rest, valued, names_data=name in _NAMING_DATA)
    # Options may stand between images and question; argparse cannot have that beside sub-commands.
    has_actions = any(isinstance(action, argparse._SubParsersAction) for action in parser._actions)
    args, unknown = (parser.parse_known_args if has_actions else parser.parse_known_intermixed_args)(rest)
    if unknown:
        raise ImpresaError(_unknown_argument(name, unknown[0], parser))
    code: int = module.run(args, overrides) or 0
    sys.stdout.flush()
    return code


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
