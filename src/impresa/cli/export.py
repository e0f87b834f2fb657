"""Write a run to a folder, for other libraries.

An alignment: safetensors (weights, config, preprocessing and tokenizer, which impresa.load reads), transformers,
sentence-transformers, open_clip or onnx (a file for each encoder). A run with a pretrained decoder: peft (the
adapters, with encoders and fusion beside them) or merged (a plain transformers model). The folder's README.md says how
to load it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from impresa.cli.answering import add_run
from impresa.config.paths import expanded
from impresa.errors import CheckpointError, ConfigError
from impresa.export.formats import Format


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="the same as --out")
    parser.add_argument("--to", choices=get_args(Format), help="the format (default: peft, or merged without adapters)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to; a new folder, or an empty one")
    parser.add_argument(
        "--check", action="store_true", help="load it in a new process by its own library and compare it with the run"
    )
    parser.add_argument("--merge", action="store_true", help="the same as --to merged")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Export and print the folder."""
    from impresa.config.runs import read_run
    from impresa.export import export_run
    from impresa.export.formats import check_free, chosen_format

    folder = _folder(args)
    if args.merge and args.to not in (None, "merged"):
        raise ConfigError(f"--merge: is --to merged, and contradicts --to {args.to}; give one of them")
    config = read_run("RUN", str(args.run))
    try:
        to = chosen_format(config, args.run, "merged" if args.merge else args.to)
        check_free(folder)
        print(export_run(args.run, folder, to=to, check=args.check))
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{folder}: cannot be written ({reason}); name another folder") from error


def _folder(args: argparse.Namespace) -> Path:
    if args.out is not None and args.folder is not None:
        raise ConfigError(f"--out: {args.out}, but DIR is {args.folder}; give one of them")
    folder: Path | None = args.out or args.folder
    if folder is None:
        raise ConfigError("--out: no folder is named; give --out DIR")
    return expanded(str(folder))
