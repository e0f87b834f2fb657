"""Convert a checkpoint of a training run: from the folder that trainer.strategy=fsdp writes to a single file, and back.

A run resumes from either with any strategy and number of processes; the single file is for copying and for other tools.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="convert")
    convert = actions.add_parser("convert", help="write a checkpoint in the other form", allow_abbrev=False)
    convert.description = "Write a checkpoint in the other form; the one that is there stays as it is."
    convert.add_argument("path", type=Path, metavar="CHECKPOINT", help="such as RUN/checkpoints/last.ckpt")
    convert.add_argument("--to", required=True, choices=("single", "sharded"), help="one file, or a folder of parts")
    convert.add_argument("--out", required=True, type=Path, metavar="PATH", help="a new file or folder")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Convert, and print where to."""
    from impresa.training.checkpoints import convert

    print(convert(args.path, args.out, to=args.to))
