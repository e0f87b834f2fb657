"""Ask a run with a decoder about images, sounds (--sound) or both; the last argument is the question, in quotes.

For one image the answer is printed, on a terminal as it is generated; for several a line each, `path: answer`.
"""

from __future__ import annotations

import argparse
import os.path

from impresa.cli.answering import add_generation, add_run, add_subjects_and_output, answer
from impresa.data.text import is_unicode
from impresa.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_subjects_and_output(parser)
    parser.add_argument("question", metavar="QUESTION", help="what is asked about each")
    add_generation(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Answer and print."""
    question = args.question
    if not question.strip():
        raise DataError("QUESTION: is empty; ask something")
    if not is_unicode(question):
        raise DataError("QUESTION: is not UTF-8 text; write it in that encoding")
    if os.path.isfile(question):  # pathlib's fails at texts that are longer than a file name may be
        raise DataError(f"{question}: is a file where the question should be; put the question last, in quotes")
    answer(args, question)
