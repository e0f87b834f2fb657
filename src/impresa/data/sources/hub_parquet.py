"""A data set of the hub, read from its parquet files as they are needed (`dataset.streaming`).

The `datasets` library is asked which files a split has, and no more: its own streaming shuffles a buffer, of which no
state is kept, so that a run could not be resumed exactly. Here order is a function of seed and epoch, as for all files.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from impresa.data.class_names import ClassNames
from impresa.data.hub_files import parquet_on_hub
from impresa.data.shards.places import files_at
from impresa.data.sources.parquet import ParquetSource
from impresa.data.sources.parquet_files import Place


class HubParquetSource(ParquetSource):
    """Samples of one split, in the order of its files' names. The path is an id, see `impresa.config.hub_names`; all
    else is as in `ParquetSource`."""

    def _places(self, path: str) -> Sequence[Place]:
        found = parquet_on_hub(path)
        self._names_of_hub = found.class_names
        return files_at(found.addresses)

    def _class_names_in(self, schema: pa.Schema) -> ClassNames:
        return super()._class_names_in(schema) or self._names_of_hub.get(self._config.label_column, {})
