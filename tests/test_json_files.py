from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from impresa import json_files
from impresa.errors import CheckpointError
from impresa.json_files import MAX_DEPTH, parse_json, read_json


@dataclass
class Sizes:
    width: Annotated[int, Field(ge=1, le=10)]
    shares: tuple[float, ...] = ()


def test_values_are_of_the_type(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"width": 3, "shares": [1, 0.5]}')
    assert read_json(tmp_path / "a.json", Sizes) == Sizes(3, (1.0, 0.5))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"width": 11}', "`width`: Input should be less than or equal to 10"),
        ('{"width": "3"}', "`width`: Input should be a valid integer"),
        ("{}", "`width`: Field required"),
        ("[]", "Input should be"),
        ("{", "Invalid JSON"),
        ("[" * 100_000, "Invalid JSON: recursion limit exceeded"),
        ("\udcff", "Invalid JSON"),
    ],
)
def test_anything_else_is_one_line_with_the_file_and_the_fix(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError) as caught:
        read_json(path, Sizes, fix="make it anew")
    (line,) = caught.value.lines
    assert line.startswith(f"{path}: {fault}")
    assert line.endswith("; make it anew")
    assert "\n" not in line


def test_a_file_that_is_missing_or_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read \(No such file or directory\)"):
        read_json(tmp_path / "none.json", Sizes)
    monkeypatch.setattr(json_files, "MAX_BYTES", 4)
    (tmp_path / "a.json").write_text('{"width": 3}')
    with pytest.raises(CheckpointError, match="is larger than"):
        read_json(tmp_path / "a.json", Sizes)


@pytest.mark.parametrize("depth", [MAX_DEPTH + 2, 900, 100_000])
def test_values_nested_too_deeply_are_a_value_error(depth: int) -> None:
    for text in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(text)
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
