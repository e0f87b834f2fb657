"""Talk with a run that has a decoder about one image, without beam search.

A question per line on standard input; answers are printed as they are generated. Earlier questions and answers are
known; /new forgets them. An empty line or ctrl-d ends.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from impresa.cli.answering import add_generation, add_run, check_inputs, load_model, print_pieces
from impresa.data.dialogue import Turn
from impresa.errors import DataError

NEW = "/new"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("image", type=Path, metavar="IMAGE", help="image file")
    add_generation(parser, beams=False)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Answer the lines of standard input.

    Raises:
        DataError: a question is unusable; on a terminal the error is shown and the next question read.
    """
    check_inputs(args, [args.image])
    model = load_model(args)
    model.generation = replace(model.generation, num_beams=1)
    turns: list[Turn] = []
    for question in _questions():
        if question == NEW:
            turns = []
            continue
        try:
            answer = print_pieces(model.stream(args.image, question, turns=turns)).strip()
        except DataError as error:
            if not sys.stdin.isatty():
                raise
            print(*error.lines, sep="\n", file=sys.stderr)
            continue
        if answer:
            turns.append(Turn(question, answer))


def _questions() -> Iterator[str]:
    """Lines up to an empty one, with a prompt on a terminal."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except UnicodeDecodeError as error:
            raise DataError("standard input: is not UTF-8 text; write it in that encoding") from error
        except EOFError:
            if prompt:
                print()
            return
        if not line:
            return
        yield line
