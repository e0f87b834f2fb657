"""Put a run on the Hugging Face hub: an export of it, and a card with metrics, licence and limits.

Without --to an alignment is sent as safetensors (which impresa.load reads after `hf download`), and a run with a
pretrained decoder as peft or merged; see `impresa export`. The token is that of `hf auth login` or HF_TOKEN.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from impresa.export.formats import Format


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a finished run")
    parser.add_argument("repo", metavar="REPO", help="OWNER/NAME on the hub; made if it is not there")
    parser.add_argument("--to", choices=get_args(Format), help="the format (see impresa export)")
    parser.add_argument("--licence", "--license", metavar="NAME", help="the hub's name of it, such as apache-2.0")
    parser.add_argument("--private", action="store_true", help="a new repository is for its owner alone")
    parser.add_argument("--dry-run", action="store_true", help="print what would be sent, and send nothing")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Export, send, and print the address."""
    from tempfile import TemporaryDirectory

    from impresa.export.push import prepare_upload, send

    with TemporaryDirectory(prefix="impresa-push-") as scratch:
        folder = Path(scratch) / "export"
        upload = prepare_upload(args.run, folder, args.repo, to=args.to, licence=args.licence, private=args.private)
        if not args.dry_run:
            print(send(upload))
            return
        visibility = "private" if args.private else "public"
        print(f"would send to {upload.repo} ({visibility} if it is new):")
        for name, size in upload.files:
            print(f"{size:>14,}  {name}")
        print(f"\nREADME.md:\n\n{upload.card}")
