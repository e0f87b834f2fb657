"""Write the language model of a run with a pretrained decoder to a folder, for other libraries.

Low-rank adapters are written in peft's format with encoders, fusion, tokenizer and config beside them, or with --merge
as a plain transformers model; a model that was trained whole is always written as one. The folder's README.md says how
to load it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from impresa.cli.answering import add_run
from impresa.errors import CheckpointError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("folder", type=Path, metavar="DIR", help="new or empty folder to write to")
    parser.add_argument(
        "--merge", action="store_true", help="merge the adapters into the unquantised model, in float32"
    )


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Export and print the folder."""
    from impresa.config.runs import read_run
    from impresa.export import check_exportable, export_run

    config = read_run("RUN", str(args.run))
    try:
        check_exportable(config, args.run, args.folder)
        print(export_run(args.run, args.folder, merge=args.merge))
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{args.folder}: cannot be written ({reason}); name another folder") from error
