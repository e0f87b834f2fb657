"""Draw the embedding space of an alignment in two dimensions.

Images, texts and sounds of the data are embedded and written to a folder: map.html, one page to look around in, and
map.parquet with the same points, which Embedding Atlas opens. Other data are read with the run's columns, but not from
its dataset.image_root, and may have keys of their own: dataset.caption_column=text, and so on.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from impresa.cli.options import add_device, checked_device, count
from impresa.cli.overrides import check_data_overrides
from impresa.cli.reading import reading_config
from impresa.config.paths import EMBEDDED
from impresa.errors import CheckpointError, ConfigError
from impresa.foreign_text import printable

if TYPE_CHECKING:
    from impresa.config.experiment import ExperimentConfig
    from impresa.data.sources import Source, Split

_SPLITS: tuple[Split, ...] = ("train", "val", "test")
_ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="directory that `impresa train` printed")
    parser.add_argument("--data", metavar="PATH", help="other data: a folder, a parquet file, or shapes")
    what = "of the run's data or of shapes; may be given several times (default: test)"
    parser.add_argument("--split", action="append", choices=(*_SPLITS, _ALL), help=what)
    what = "pca: an exact projection; tsne: keeps neighbourhoods, needs openTSNE (default: pca)"
    parser.add_argument("--method", choices=("pca", "tsne"), default="pca", help=what)
    what = "samples that are drawn, at even distances through the data (default: %(default)s)"
    parser.add_argument("--limit", type=count, metavar="N", default=2000, help=what)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (default: map-NAME, for the run's NAME)")
    parser.add_argument("--force", action="store_true", help="replace the map in a folder that is not empty")
    parser.add_argument(
        "--batch-size", type=count, metavar="N", help="images or texts at a time (default: that of training)"
    )
    add_device(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Draw the map, and print what is on it and the page."""
    from impresa.config.runs import read_run
    from impresa.embedding_map.request import check_folder, check_method

    others = bool(args.data) and args.data != EMBEDDED
    if others and args.split:
        raise ConfigError(f"--split: {args.data} is drawn whole; leave --split out")
    if overrides and not args.data:
        raise ConfigError(
            f"{overrides[0]}: is for other data than the run's own; name them with --data, or leave it out"
        )
    check_data_overrides(overrides)
    config = read_run("RUN", str(args.run))
    if config.decoder is not None:
        raise CheckpointError(f"{args.run}: answers questions and embeds nothing; name the run of an alignment")
    check_method(args.method)
    run_name = args.run.resolve().name
    folder = args.out or Path(f"map-{run_name}")
    check_folder(folder, force=args.force)
    from impresa.embedding_map.draw import draw_map
    from impresa.run_dir.load import load_embedder

    sources, data = _open_data(args, reading_config(config, overrides, other_data=bool(args.data)))
    drawn = draw_map(
        load_embedder(args.run, checked_device(args.device)),
        sources,
        folder,
        name=config.name if config.name == run_name else f"{config.name}, {run_name}",
        data=data,
        method=args.method,
        limit=args.limit,
        batch_size=args.batch_size,
        show_progress=sys.stderr.isatty(),
    )
    print(printable(drawn.summary), *map(printable, drawn.notes), drawn.page, sep="\n")


def _open_data(args: argparse.Namespace, config: ExperimentConfig) -> tuple[dict[str, Source], str]:
    """The splits to draw by name, and the name of the data."""
    from impresa.data.sources import open_path, open_source, reading_of, split_read
    from impresa.tasks.samples import name_of_data

    dataset, reading = config.dataset, reading_of(config, labels=True)
    if args.data and args.data != EMBEDDED:
        return {"all": open_path(dataset, args.data, reading)}, args.data
    if args.data:
        dataset = replace(dataset, source="auto", train_path=EMBEDDED, val_path=None, test_path=None)
    asked = args.split or ["test"]
    chosen = dict.fromkeys(split_read(dataset, split) for split in (_SPLITS if _ALL in asked else asked))
    sources: dict[str, Source] = {split: open_source(dataset, split, reading) for split in chosen}
    return sources, "; ".join(name_of_data(dataset, split) for split in chosen)
