"""Make an index of pictures (sounds, texts) that `impresa search` searches, or bring one up to date.

A source is a folder of pictures with or without captions, a table, a parquet file, a shard, or a pattern of them. What
is new or has changed is embedded, what is gone is removed, and nothing else is read; without a source all sources of
the index are checked. An update that is killed leaves the old state, and the next one continues. Sources are read with
the run's columns, but not from its dataset.image_root, and may have keys of their own: dataset.caption_column=text, and
so on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from impresa.cli.options import add_device, checked_device, count
from impresa.cli.overrides import check_data_overrides
from impresa.config.encoder import Modality
from impresa.errors import ConfigError
from impresa.foreign_text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="directory that `impresa train` printed")
    parser.add_argument("source", nargs="*", metavar="SOURCE", help="a folder, a table, a parquet file, or shapes")
    what = "folder of the index, or an address such as s3://bucket/index (default: index-NAME, for the run's NAME)"
    parser.add_argument("--out", metavar="INDEX", help=what)
    what = "what becomes rows; repeatable (default: image, and audio with an audio encoder)"
    parser.add_argument("--modality", action="append", choices=get_args(Modality), help=what)
    what = "remove all rows of a source; may be given several times"
    parser.add_argument("--drop", action="append", default=[], metavar="SOURCE", help=what)
    parser.add_argument("--batch-size", type=count, metavar="N", help="inputs at a time (default: that of evaluations)")
    add_device(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Index, and print what was done, what was left out, and last the index."""
    from impresa.config.runs import check_embeds, read_run

    check_data_overrides(overrides)
    config = read_run("RUN", str(args.run))
    check_embeds(args.run, config)
    from impresa.config.paths import expanded
    from impresa.run_dir.load import load_embedder
    from impresa.search.about import read_about
    from impresa.search.opening import modalities_of, open_readers, source_names
    from impresa.search.store import Store, exists
    from impresa.search.update import update_index
    from impresa.tasks.samples import evaluation_batch_size

    index = args.out or f"index-{args.run.resolve().name}"
    names, asked, known = source_names(args.source), args.modality or (), list[str]()
    if exists(index):
        store = Store.latest(index)
        asked = asked or read_about(index, store.read_about()).modalities
        known = store.sources()
        if not names and not args.drop:
            names = known
    elif not names:
        raise ConfigError(f"SOURCE: {index} is no index yet; name what goes into it, such as a folder of pictures")
    modalities = modalities_of(config, asked)
    done = update_index(
        index,
        expanded(str(args.run)),
        lambda: open_readers(config, names, modalities, overrides, known=known),
        lambda: load_embedder(args.run, checked_device(args.device)),
        modalities=modalities,
        drop=source_names(args.drop),
        batch_size=evaluation_batch_size(args.batch_size, config.dataset),
        show_progress=sys.stderr.isatty(),
    )
    print(done.summary(), *map(printable, done.left_out()), index, sep="\n")
