"""Embed a whole folder, a table or a text file, and write the vectors to one file.

vectors.parquet has the columns id, modality, caption, label and vector, a row for each image, text or sound;
vectors.npy is the array alone, with the rest in a .json beside it. Data are read with the run's columns, but not from
its dataset.image_root, and may have keys of their own: dataset.caption_column=text, and so on. Captions are not needed;
bad samples are skipped and named.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from impresa.cli.options import add_device, checked_device, count
from impresa.cli.other_data import reading_config
from impresa.cli.overrides import check_data_overrides
from impresa.config.encoder import Modality
from impresa.config.types import EmbeddingPrecision
from impresa.errors import ConfigError
from impresa.foreign_text import printable

if TYPE_CHECKING:
    from impresa.search.embed import EmbeddedData

_MOST_BAD = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="directory that `impresa train` printed")
    parser.add_argument("data", metavar="DATA", help="a folder, a table, a parquet file, a text file, or shapes")
    what = "where to, as .parquet or .npy (default: vectors-NAME.parquet, for the run's NAME)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=what)
    what = "what is embedded; repeatable (default: image, or text for the lines of a .txt file)"
    parser.add_argument("--modality", action="append", choices=get_args(Modality), help=what)
    parser.add_argument("--dim", type=count, metavar="N", help="keep the first N numbers (default: all)")
    what = "number format of the vectors (default: %(default)s)"
    parser.add_argument("--precision", choices=get_args(EmbeddingPrecision), default="float32", help=what)
    what = "put a prompt of the run (text_encoder.prompts) before each text: query or document"
    parser.add_argument("--prompt-name", metavar="NAME", help=what)
    what = "int8, uint8: use the ranges of this earlier file (for queries: the file of their corpus)"
    parser.add_argument("--ranges-of", type=Path, metavar="FILE", help=what)
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument("--batch-size", type=count, metavar="N", help="inputs at a time (default: that of evaluations)")
    add_device(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Embed and write; print what was written, what was left out, and last the file."""
    from impresa.config.runs import check_embeds, read_run
    from impresa.search.request import check_out

    check_data_overrides(overrides)
    config = read_run("RUN", str(args.run))
    check_embeds(args.run, config)
    out = args.out or Path(f"vectors-{args.run.resolve().name}.parquet")
    check_out(out, force=args.force)
    if args.ranges_of and args.precision not in ("int8", "uint8"):
        raise ConfigError(f"--ranges-of: is for --precision int8 and uint8, not for {args.precision}; leave it out")
    if args.dim and args.dim > config.vision_encoder.embed_dim:
        fault = f"--dim: {args.dim} is above {config.vision_encoder.embed_dim}, the embeddings' width"
        raise ConfigError(f"{fault}; choose a smaller one")
    modalities = _modalities(args)
    if "audio" in modalities and config.audio_encoder is None:
        raise ConfigError(f"--modality: {args.run} has no audio encoder; name image or text")
    if args.prompt_name and "text" not in modalities:
        raise ConfigError("--prompt-name: is for texts, and none are embedded; add --modality text, or leave it out")
    from impresa import __version__
    from impresa.data.sources import Reading, open_path
    from impresa.run_dir.load import load_embedder
    from impresa.search.embed import embed_source
    from impresa.search.files import read_ranges, write_vectors
    from impresa.tasks.alignment.prompts import prompt_words
    from impresa.tasks.samples import evaluation_batch_size

    prompt_words(config.text_encoder.prompts, args.prompt_name, "--prompt-name")
    ranges = read_ranges(args.ranges_of) if args.ranges_of else None
    config = reading_config(config, args.data, overrides)
    seconds = config.audio_encoder.audio_max_seconds if config.audio_encoder and "audio" in modalities else None
    source = open_path(config.dataset, args.data, Reading(audio_seconds=seconds, parts=modalities))
    embedded = embed_source(
        load_embedder(args.run, checked_device(args.device)),
        source,
        modalities,
        data=args.data,
        batch_size=evaluation_batch_size(args.batch_size, config.dataset),
        dim=args.dim,
        precision=args.precision,
        ranges=ranges,
        prompt_name=args.prompt_name,
        show_progress=sys.stderr.isatty(),
    )
    facts = {"impresa": __version__, "run": str(args.run), "data": args.data}
    facts |= {"dim": args.dim or config.vision_encoder.embed_dim, "precision": args.precision}
    facts |= {"prompt_name": args.prompt_name} if args.prompt_name else {}
    write_vectors(out, embedded, facts)
    print(embedded.summary(), *map(printable, _left_out(embedded, args.data)), out, sep="\n")


def _modalities(args: argparse.Namespace) -> tuple[Modality, ...]:
    if args.modality:
        return tuple(dict.fromkeys(args.modality))
    return ("text",) if args.data.lower().endswith(".txt") else ("image",)


def _left_out(embedded: EmbeddedData, data: str) -> Iterator[str]:
    if embedded.bad:
        yield f"{len(embedded.bad):,} of {embedded.num_samples:,} samples could not be used and were skipped:"
        yield from (f"  {note.id}: {note.reason}" for note in embedded.bad[:_MOST_BAD])
    if (rest := len(embedded.bad) - _MOST_BAD) > 0:
        yield f"  and {rest:,} more; `impresa data check {data}` lists them"
