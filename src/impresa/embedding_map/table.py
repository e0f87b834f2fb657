"""The points as a parquet file, in the form that Embedding Atlas reads."""

from __future__ import annotations

from pathlib import Path

from impresa.data.text import as_unicode
from impresa.embedding_map.layout import Layout, Neighbours
from impresa.embedding_map.points import Points
from impresa.files import replacing


def write_table(path: Path, points: Points, plain: Layout, centred: Layout, neighbours: Neighbours) -> None:
    """Write one row for each point; `ids` of neighbours and `partners` are numbers of rows, from 0.

    Raises:
        OSError: the file cannot be written; it names `path`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    items = points.items
    near = zip(neighbours.ids.tolist(), neighbours.distances.tolist(), strict=True)
    number, numbers = pa.float32(), pa.list_(pa.float32())
    rows = pa.list_(pa.int64())
    of_image = [point.thumbnail and {"bytes": point.thumbnail} for point in items]
    columns = {
        "id": pa.array([as_unicode(point.id) for point in items], pa.string()),
        "modality": pa.array([point.modality for point in items], pa.string()),
        "split": pa.array([as_unicode(point.split) for point in items], pa.string()),
        "label": pa.array([point.label and as_unicode(point.label) for point in items], pa.string()),
        "caption": pa.array([as_unicode("\n".join(point.captions)) for point in items], pa.string()),
        "image": pa.array(of_image, pa.struct({"bytes": pa.binary()})),
        "vector": pa.array(list(points.vectors.float().numpy()), numbers),
        "x": pa.array(plain.xy[:, 0].tolist(), number),
        "y": pa.array(plain.xy[:, 1].tolist(), number),
        "x_centred": pa.array(centred.xy[:, 0].tolist(), number),
        "y_centred": pa.array(centred.xy[:, 1].tolist(), number),
        "neighbors": pa.array(
            [{"ids": ids, "distances": distances} for ids, distances in near],
            pa.struct({"ids": rows, "distances": numbers}),
        ),
        "partners": pa.array([list(point.partners) for point in items], rows),
    }
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
