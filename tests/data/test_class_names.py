"""Names of classes: from the config, from a file, from a parquet file's schema; labels that have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from impresa.config.dataset import DatasetConfig
from impresa.data.class_names import class_name, configured_names
from impresa.data.sources import BadSample, open_path
from impresa.errors import DataError
from pictures import png, write_jsonl


def labels(folder: Path, **config: Any) -> list[str | None]:
    """The label of each sample, or the reason why it is bad."""
    source, found = open_path(DatasetConfig(**config), str(folder)), []
    for index in range(len(source)):
        try:
            found.append(source[index].label)
        except BadSample as bad:
            found.append(bad.reason)
    return found


def test_numbers_get_the_names_of_the_config(tmp_path: Path) -> None:
    values = [1, 0.0, "1", "1.0", "cat", None, float("nan"), -1, True, "False"]
    folder = write_jsonl(tmp_path, [{"image": "0.png", "caption": "x", "label": value} for value in values])
    expected = ["dog", "cat", "dog", "dog", "cat", None, None, None, "dog", "cat"]
    assert labels(folder, class_names=("cat", "dog")) == expected
    assert labels(folder) == ["1", "0", "1", "1", "cat", None, None, "-1", "True", "False"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("n.txt", "\ufeffcat\n dog \n\n"),
        ("n.json", '["cat", "dog"]'),
        ("n.json", '{"0": "cat", "1": "dog"}'),
    ],
)
def test_names_may_stand_in_a_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert configured_names(DatasetConfig(class_names=str(tmp_path / name))) == {"0": "cat", "1": "dog"}


def test_an_object_renames_labels_of_any_kind(tmp_path: Path) -> None:
    (tmp_path / "n.json").write_text('{"n02123045": "tabby cat"}')
    names = configured_names(DatasetConfig(class_names=str(tmp_path / "n.json")))
    assert (class_name("n02123045", names), class_name("tabby cat", names)) == ("tabby cat", "tabby cat")


@pytest.mark.parametrize("label", [2, -2, 10**30, "bird", 0.5])
def test_a_label_without_a_name_is_a_bad_sample(tmp_path: Path, label: Any) -> None:
    folder = write_jsonl(tmp_path, [{"image": "0.png", "caption": "x", "label": label}])
    (reason,) = labels(folder, class_names=("cat", "dog"))
    assert reason == f"the label {str(label)!r} is none of the 2 class names; set dataset.class_names"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("n.txt", b"", "holds no names"),
        ("n.txt", b"cat\n\ndog", "holds an empty name"),
        ("n.txt", b"caf\xe9", "codec can't decode"),
        ("n.json", b'{"0": 1}', "is no list of names, and no object"),
        ("n.json", b"[" * 9999, "nested too deeply"),
        ("gone.txt", None, "No such file"),
        ("n.yaml", b"- cat\n- dog\n", "is no text file and no JSON by its name"),
        ("n.csv", b"0,cat\n1,dog\n", "is no text file and no JSON by its name"),
    ],
)
def test_files_without_names_are_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"dataset\.class_names: .*{message}.*; give one name per line") as caught:
        configured_names(DatasetConfig(class_names=str(tmp_path / name)))
    assert len(caught.value.lines) == 1


def write_hugging_face(path: Path, feature: Any, values: list[Any]) -> Path:
    """A parquet file whose schema describes the label's column as the `datasets` library does."""
    table = pa.table({"image": [png(0)] * len(values), "caption": ["x"] * len(values), "label": values})
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def test_names_of_a_schema_are_used_where_the_config_has_none(tmp_path: Path) -> None:
    write_hugging_face(tmp_path / "a.parquet", {"names": ["cat", "dog"], "_type": "ClassLabel"}, [1, 0, None, -1, 2])
    write_hugging_face(tmp_path / "b.parquet", {"names": ["owl"], "_type": "ClassLabel"}, [0])
    bad = "the label '2' is none of the 2 class names; set dataset.class_names"
    assert labels(tmp_path) == ["dog", "cat", None, None, bad, "owl"]
    assert labels(tmp_path, class_names=("a", "b", "c")) == ["b", "a", None, None, "c", "a"]


@pytest.mark.parametrize("feature", [{"_type": "Value"}, {"names": 3, "_type": "ClassLabel"}, "x", None, [1]])
def test_other_schemas_have_no_names(tmp_path: Path, feature: Any) -> None:
    assert labels(write_hugging_face(tmp_path / "a.parquet", feature, [1])) == ["1"]
