"""A fault is told in the lines that it was raised with, whatever a library's own message looks like."""

from __future__ import annotations

from pathlib import Path

import pytest

from impresa.config.dataset import DatasetConfig
from impresa.data.sources import BadSample, open_path
from impresa.errors import ConfigError, DataError
from pictures import png


def test_the_words_of_a_library_stay_in_one_line() -> None:
    assert ConfigError("a: b\nc\n; d", "e").lines == ("a: b c ; d", "e")
    bad = BadSample("id", "cannot be read (no\r\nmore)")
    assert (bad.reason, str(bad)) == ("cannot be read (no more)", "id: cannot be read (no more)")


def test_a_parquet_file_with_a_damaged_footer_is_one_line(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [png(0)], "caption": ["a"]}), file)
    content = bytearray(file.read_bytes())
    content[-60:-8] = b"\x0f" * 52
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_path(DatasetConfig(), str(file))
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).endswith("; name parquet files")
