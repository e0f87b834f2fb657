"""Draw the embedding space of an alignment in two dimensions.

Images, texts and sounds of the data are embedded and written to a folder: map.html, an interactive page, and
map.parquet with the same points, which Embedding Atlas opens. Other data are read with the run's columns, but not from
its dataset.image_root, and may have keys of their own: dataset.caption_column=text, and so on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from impresa.cli.options import add_device, checked_device, count
from impresa.cli.other_data import add_data, check_other_data, is_path, open_data, reading_config, with_splits
from impresa.foreign_text import printable

if TYPE_CHECKING:
    from impresa.config.experiment import ExperimentConfig
    from impresa.data.sources import Source, Split

_SPLITS: tuple[Split, ...] = ("train", "val", "test")
_ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="directory that `impresa train` printed")
    add_data(parser)
    what = "split of the run's data or of shapes; repeatable (default: test)"
    parser.add_argument("--split", action="append", choices=(*_SPLITS, _ALL), help=what)
    what = "pca: an exact projection; tsne: keeps neighbourhoods, needs openTSNE (default: pca)"
    parser.add_argument("--method", choices=("pca", "tsne"), default="pca", help=what)
    what = "number of samples to draw, evenly spaced through the data (default: %(default)s)"
    parser.add_argument("--limit", type=count, metavar="N", default=2000, help=what)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (default: map-NAME, for the run's NAME)")
    parser.add_argument("--force", action="store_true", help="replace the map in a folder that is not empty")
    parser.add_argument(
        "--batch-size", type=count, metavar="N", help="images or texts at a time (default: that of training)"
    )
    add_device(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Draw the map, and print what is on it and the page."""
    from impresa.config.runs import check_embeds, read_run
    from impresa.embedding_map.request import check_folder, check_method

    check_other_data(args.data, overrides, has_split=bool(args.split))
    config = read_run("RUN", str(args.run))
    check_embeds(args.run, config)
    check_method(args.method)
    run_name = args.run.resolve().name
    folder = args.out or Path(f"map-{run_name}")
    check_folder(folder, force=args.force)
    from impresa.embedding_map.draw import draw_map
    from impresa.run_dir.load import load_embedder

    sources, data = _sources(args, reading_config(config, args.data, overrides))
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


def _sources(args: argparse.Namespace, config: ExperimentConfig) -> tuple[dict[str, Source], str]:
    """The splits to draw by name, and the name of the data."""
    from impresa.data.sources import reading_of, split_read

    dataset, reading = config.dataset, reading_of(config, labels=True)
    asked = _SPLITS if _ALL in (args.split or ()) else args.split or ["test"]
    splits = dict.fromkeys(split_read(with_splits(dataset, args.data), split) for split in asked)
    opened = {split: open_data(dataset, args.data, split, reading) for split in splits}
    sources = {_ALL if is_path(args.data) else split: source for split, (source, _) in opened.items()}
    return sources, "; ".join(name for _, name in opened.values())
