"""Draw what a run looks at in an image: attention over the picture, as PNG or as a page.

For an alignment: the pooling query, Perceiver latents, CLS and memory tokens, and with --text the parts that the
similarity with a text depends on. For a run with a decoder: where each token of its likeliest answer looks, and the
answer after each cycle of its recursion; without --question it describes the image.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from impresa.cli.answering import check_image
from impresa.cli.options import add_device, checked_device
from impresa.data.text import is_unicode
from impresa.errors import CheckpointError, DataError

SUFFIXES = (".png", ".html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="directory that `impresa train` printed")
    parser.add_argument("image", type=Path, metavar="IMAGE", help="image file")
    parser.add_argument("--text", metavar="WORDS", help="for an alignment: what the image is compared with")
    parser.add_argument("--question", metavar="WORDS", help="for a run with a decoder: what it is asked")
    parser.add_argument(
        "--method",
        choices=("last", "rollout"),
        default="last",
        help="attention of the image tower's last layer (default), or rollout through all of its layers",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("explain.png"), metavar="FILE", help="*.png or *.html (default: explain.png)"
    )
    add_device(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Explain, write the file and print its path."""
    _check(args)
    from impresa.files import write_atomic
    from impresa.foreign_text import printable
    from impresa.run_dir.load import load

    model = load(args.run, device=checked_device(args.device))
    explanation = model.explain(args.image, args.text or args.question, method=args.method)
    content: str | bytes
    if args.out.suffix.lower() == ".html":
        from impresa.inside.page import explanation_page

        content = explanation_page(explanation, printable(args.image.name))
    else:
        from impresa.inside.figure import explanation_png

        content = explanation_png(explanation)
    try:
        write_atomic(args.out, content)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{args.out}: cannot be written ({reason}); name another file with --out") from error
    print(*(f"{printable(note)}\n" for note in explanation.notes), sep="", end="", file=sys.stderr)
    print(printable(str(args.out)))


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot be explained or written, before torch is imported."""
    from impresa.config.runs import read_run

    if args.out.suffix.lower() not in SUFFIXES:
        raise DataError(f"--out: {args.out} is neither *.png nor *.html; name it so")
    if args.out.is_dir() or not args.out.absolute().parent.is_dir():
        fault = "is a folder" if args.out.is_dir() else "lies in a folder that does not exist"
        raise DataError(f"--out: {args.out} {fault}; name a file")
    answers = read_run("RUN", str(args.run)).decoder is not None
    if answers and args.text is not None:
        raise CheckpointError(f"--text: {args.run} answers questions and compares nothing; give --question, or neither")
    if not answers and args.question is not None:
        raise CheckpointError(f"--question: {args.run} is an alignment and answers nothing; give --text, or neither")
    for option in ("text", "question"):
        words = getattr(args, option)
        if words is not None and not words.strip():
            raise DataError(f"--{option}: is empty; say something, or leave it out")
        if words is not None and not is_unicode(words):
            raise DataError(f"--{option}: is not UTF-8 text; write it in that encoding")
    check_image(args.image)
    if args.out.exists() and args.out.samefile(args.image):
        raise DataError(f"--out: {args.out} is the image itself; name another file")
