"""From a model and data to the files of a map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from impresa.data.sources import Source
from impresa.embedding_map.layout import TSNE_STEPS, Layout, centre_groups, find_neighbours, lay_out
from impresa.embedding_map.page import render_map
from impresa.embedding_map.points import MODALITIES, Points, collect_points
from impresa.embedding_map.request import Method
from impresa.embedding_map.table import write_table
from impresa.errors import DataError
from impresa.files import write_atomic
from impresa.tasks.samples import evaluation_batch_size, progress_bar

if TYPE_CHECKING:
    from impresa.tasks.alignment.embedder import EmbeddingModel

PAGE, TABLE = "map.html", "map.parquet"


@dataclass(frozen=True)
class Drawn:
    """A finished map."""

    page: Path
    summary: str
    """Its content, in a few words."""
    notes: tuple[str, ...]
    """Sentences on what it shows of the whole, and on what is not on it."""


def draw_map(
    model: EmbeddingModel,
    sources: Mapping[str, Source],
    folder: Path,
    *,
    name: str,
    data: str,
    method: Method = "pca",
    limit: int = 2000,
    batch_size: int | None = None,
    show_progress: bool = False,
) -> Drawn:
    """Embed the data and write `map.html` and `map.parquet` into a folder, which is made if it is missing.

    Args:
        model: the alignment that embeds.
        sources: the splits by name.
        folder: where to; files of other names in it stay.
        name: of the run.
        data: name of the data.
        method: how the two dimensions are found.
        limit: samples that are read; see `collect_points`.
        batch_size: inputs at a time. None: the config's evaluation batch size.
        show_progress: bars on standard error.

    Raises:
        DataError: no sample is usable, or the folder cannot be made.
        OSError: a file cannot be written; it names the file.
    """
    with _writing_to(folder):
        batch = evaluation_batch_size(batch_size, model.config.dataset)
        points = collect_points(model, sources, data=data, limit=limit, batch_size=batch, show_progress=show_progress)
        centred_vectors = centre_groups(points.vectors, map(points.rows_of, MODALITIES))
        with progress_bar(show_progress) as bar:
            task = bar.add_task("laying out", total=2 * TSNE_STEPS)
            plain, centred = (
                lay_out(vectors, method, lambda steps: bar.advance(task, steps))
                for vectors in (points.vectors, centred_vectors)
            )
            bar.update(task, completed=2 * TSNE_STEPS)
            neighbours = find_neighbours(
                points.vectors, lambda starts: bar.track(starts, description="finding neighbours")
            )
        notes = tuple(_left_out(points))
        page = render_map(
            points, plain, centred, neighbours, name=name, data=data, method=method, notes=notes, table=TABLE
        )
        write_table(folder / TABLE, points, plain, centred, neighbours)
        write_atomic(folder / PAGE, page)
    return Drawn(folder / PAGE, points.summary(), (*_explained(plain, centred), *notes))


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Make the folder first, so that nothing is embedded for a place that cannot be had; a new one that stays empty
    goes away again."""
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error}); name another with --out") from error
    try:
        yield
    finally:
        if is_new:
            with suppress(OSError):
                folder.rmdir()


def _left_out(points: Points) -> Iterator[str]:
    if points.num_left_out:
        total = points.num_samples + points.num_left_out
        yield f"{points.num_samples:,} of {total:,} samples, at even distances; --limit {total} takes all"
    if points.num_texts_left_out:
        yield f"{points.num_texts_left_out:,} texts are left out; a larger --limit takes more"
    if points.bad:
        first = f"{points.bad[0].id}: {points.bad[0].reason}"
        yield f"{len(points.bad):,} of {points.num_samples:,} samples could not be used and were skipped ({first})"


def _explained(plain: Layout, centred: Layout) -> Iterator[str]:
    if plain.explained and centred.explained:
        shares = f"{sum(plain.explained):.1%} of the variance, {sum(centred.explained):.1%} with each modality centred"
        yield f"two dimensions show {shares}"
