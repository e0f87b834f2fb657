"""Chat with a run that has a decoder about an image, several together, or a sound (--sound), without beam search.

A question per line on standard input; a backslash at the end of a line continues it on the next, and a block that is
pasted into a terminal is one question. Answers are printed as they are generated, and ctrl-c stops one. Earlier
questions and answers are remembered. /new forgets them, /image PATH and /sound PATH load another, /help lists more;
/quit, an empty line or ctrl-d ends.
"""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from impresa.cli.answering import (
    Asked,
    add_generation,
    add_run,
    asked_about,
    check_image,
    check_inputs,
    check_sound,
    load_model,
    print_pieces,
    remarks,
)
from impresa.config.describe import did_you_mean, listed
from impresa.data.dialogue import Turn
from impresa.errors import DataError
from impresa.foreign_text import printable

if TYPE_CHECKING:
    from impresa.tasks.answering.answerer import AnsweringModel

COMMANDS = {
    "/new": "forget what was said",
    "/image": "PATH: talk about another image from here on, and forget what was said",
    "/sound": "PATH: talk about another sound from here on, and forget what was said",
    "/help": "print this; a question may go on in the next line after a \\ at the end of one",
    "/quit": "end, as an empty line and ctrl-d do",
}
_NAMING = {"/image": check_image, "/sound": check_sound}
"""Commands that name a file, and what refuses it."""
_COMMAND = re.compile(r"/[\w-]*")
"""The first word of a command; a path has another slash."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="image file; none for a sound alone")
    parser.add_argument("--sound", type=Path, metavar="FILE", help="sound file")
    add_generation(parser, beams=False)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Answer the lines of standard input.

    Raises:
        DataError: a question or command is unusable; on a terminal the error is shown and the next line read.
        KeyboardInterrupt: ctrl-c where nobody types; on a terminal it ends the answer, or drops the line.
    """
    (asked,) = asked_about(args.images, [] if args.sound is None else [args.sound], together=True)
    check_inputs(args, [asked])
    model = load_model(args)
    model.generation = replace(model.generation, num_beams=1)
    chat, is_typed = _Chat(model, asked), sys.stdin.isatty()
    if is_typed:
        with suppress(ImportError):
            import readline  # noqa: F401 - with it `input` edits lines and has a history
    while chat.goes_on:
        try:
            chat.take(_read(is_typed))
        except DataError as error:
            if not is_typed:
                raise
            print(*map(printable, error.lines), sep="\n", file=sys.stderr)
        except KeyboardInterrupt:
            if not is_typed:
                raise
            print("interrupted; /quit or ctrl-d ends", file=sys.stderr)


@dataclass
class _Chat:
    """The subject of a chat, and the turns so far."""

    model: AnsweringModel
    asked: Asked
    turns: list[Turn] = field(default_factory=list)
    goes_on: bool = True

    def take(self, line: str) -> None:
        """Do what a line says: a command, a question, or the end."""
        word, _, rest = line.partition(" ")
        if not line:
            self.goes_on = False
        elif _COMMAND.fullmatch(word):
            self._obey(word.lower(), rest.strip())
        else:
            self._ask(line)

    def _obey(self, word: str, rest: str) -> None:
        if word not in COMMANDS:
            raise DataError(
                f"{word}: unknown command; {did_you_mean(word, COMMANDS)}there are {listed(COMMANDS, 'and')}"
            )
        if rest and word not in _NAMING:
            raise DataError(f"{word}: takes nothing, not {rest!r}; write it alone")
        match word:
            case "/quit":
                self.goes_on = False
            case "/help":
                print(*(f"{command:<8}{what}" for command, what in COMMANDS.items()), sep="\n", flush=True)
            case "/new":
                self.turns = []
            case "/image":
                self.asked, self.turns = replace(self.asked, images=[_file(word, rest)]), []
            case "/sound":
                if self.model.preprocessing.audio is None:
                    raise DataError(f"{word}: this model has no audio encoder; ask about the image")
                self.asked, self.turns = replace(self.asked, sound=_file(word, rest)), []

    def _ask(self, question: str) -> None:
        said: list[str] = []
        try:
            pieces = self.model.stream(self.asked.seen, question, turns=self.turns, sound=self.asked.sound)
            answer = print_pieces(pieces, said)
            self.turns = self.turns[answer.num_forgotten :]
            for line in remarks([answer], self.model):
                print(printable(line), file=sys.stderr)
        finally:  # also of what ctrl-c has stopped
            if text := "".join(said).strip():
                self.turns.append(Turn(question, text))


def _file(word: str, name: str) -> Path:
    """The file of a path as it is typed behind a command, or dropped into a terminal, which puts quotes around it."""
    quote = name[:1] if name[:1] in ("'", '"') and name[:1] == name[-1:] else ""
    name = name.removeprefix(quote).removesuffix(quote)
    if not name:
        raise DataError(f"{word}: names no file; write the path of one behind it")
    path = Path(name).expanduser()
    _NAMING[word](path)
    return path


def _read(is_typed: bool) -> str:
    """The next line without spaces around it, with those that it goes on in; empty at the end. Typed ones have a
    prompt."""
    lines: list[str] = []
    while not lines or lines[-1].endswith("\\"):
        try:
            lines.append(input(("... " if lines else "> ") if is_typed else "").strip())
        except UnicodeDecodeError as error:
            raise DataError("standard input: is not UTF-8 text; write it in that encoding") from error
        except EOFError:
            if is_typed:
                print()
            lines.append("")
        except KeyboardInterrupt:
            print()
            raise
    return "\n".join(line.removesuffix("\\").rstrip() for line in lines).strip()
