"""Vectors on disk: a parquet table, or a numpy array with a JSON file of what its rows are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from impresa.data.text import as_unicode
from impresa.errors import DataError
from impresa.files import replacing, write_atomic
from impresa.json_files import parse_json
from impresa.search.embed import EmbeddedData
from impresa.search.request import NUMPY, sidecar_of

_METADATA = b"impresa"
"""Key of the facts in the metadata of a parquet file."""
_ROW_GROUP = 16_384
"""Rows, so that a reader need not hold all of a large file."""


def write_vectors(path: Path, embedded: EmbeddedData, facts: Mapping[str, Any]) -> None:
    """Write the vectors and what they are of; the facts, and the ranges of a quantisation, are stored with them.

    Args:
        path: `.parquet`: the columns id, modality, caption, label and vector. `.npy`: the vectors (N, W), beside it the
            rest as `.json`.
        embedded: the vectors.
        facts: of the model and the data, fit for JSON.

    Raises:
        OSError: a file cannot be written; it names the file.
    """
    ranges = None if embedded.ranges is None else embedded.ranges.tolist()
    about, rows = {**facts, "ranges": ranges}, [asdict(row) for row in embedded.rows]
    if path.suffix == NUMPY:
        write_atomic(sidecar_of(path), json.dumps({**about, "rows": rows}, indent=1))
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, embedded.vectors.numpy())
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = embedded.vectors.numpy()
    columns = {
        name: pa.array([row[name] and as_unicode(row[name]) for row in rows], pa.string())
        for name in ("id", "modality", "caption", "label")
    }
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    table = pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(about)})
    with replacing(path) as temporary:
        pq.write_table(table, temporary, row_group_size=_ROW_GROUP)


def read_ranges(path: Path) -> Any:
    """The ranges that are stored with vectors, as `write_vectors` has put them there.

    Raises:
        DataError: the file cannot be read, or holds none.
    """
    try:
        if path.suffix == NUMPY:
            about = parse_json(sidecar_of(path).read_text(encoding="utf-8"))
        else:
            import pyarrow.parquet as pq

            about = parse_json((pq.read_schema(path).metadata or {}).get(_METADATA, b"{}").decode())
    except (OSError, ValueError) as error:  # pyarrow's errors are among them
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())}); name a file of vectors") from error
    ranges = about.get("ranges") if isinstance(about, dict) else None
    if ranges is None:
        raise DataError(f"{path}: holds no ranges; name a file that `impresa encode --precision int8` has written")
    return ranges
