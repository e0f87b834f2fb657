"""Tables as text files: JSON lines, a JSON list, csv with any common separator, and the captions of Flickr8k and 30k.

Text is UTF-8, or what the file's byte order mark says. Bytes that are not UTF-8 stay in the cells as surrogates, so
that a row is bad only if one of its used cells is.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from impresa.config.dataset import DatasetConfig
from impresa.data.disk import open_regular
from impresa.data.text import is_blank, is_unicode
from impresa.errors import DataError
from impresa.json_files import parse_json

CSV_SUFFIXES = (".csv", ".tsv")
JSON_LINES, JSON = ".jsonl", ".json"
TOKEN = (".token", ".token.txt")
"""Ends of names of the captions of Flickr8k and Flickr30k: lines of `NAME.jpg#0`, a tab and a caption."""

NumberedRow = tuple[int, dict[str, Any] | str]
"""Number of the line (in json: of the row), and its cells by column, or the reason why they cannot be read."""

_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before that of UTF-16, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_OTHER_FILES = {b"PK\x03\x04": "a zip archive or an Excel workbook", b"\x1f\x8b": "gzip", b"PAR1": "parquet"}
_EXCEL_HINT = re.compile(r'\s*"?sep=.?"?\s*', re.IGNORECASE)
"""The line before the header that tells Excel the separator."""
_TOKEN_LINE = re.compile(r"([^\t]+?)(?:#\d+)?\t(.*)")


@dataclass(frozen=True)
class Table:
    """The rows of a file, read as they are asked for."""

    rows: Iterable[NumberedRow]
    columns: tuple[str, ...] = ()
    """Those of a csv file's header."""
    note: str = ""
    """Notes about the file, for the error that a column is missing."""


@contextmanager
def open_table(
    file: Path, config: DatasetConfig, wanted: Set[str] = frozenset(), *, as_lines: bool = False
) -> Iterator[Table]:
    """The table in a file; its kind follows from the file's name.

    Args:
        file: its name ends with one of the suffixes above, or `.txt`, which is csv.
        config: the columns that captions without a header are given, and the limit of a line's length.
        wanted: columns that tell the separator of a csv file.
        as_lines: each line of the file is a caption.

    Raises:
        DataError: the file cannot be read or is of no such kind.
    """
    name, max_length = file.name.lower(), config.max_file_mib << 20
    try:
        with _text(file, "" if name.endswith((*CSV_SUFFIXES, ".txt")) else "\n") as text:
            if as_lines:
                yield Table(_read_plain(_lines(text, max_length), config))
            elif name.endswith(JSON):
                yield Table(_read_json(text))
            elif name.endswith(TOKEN):
                yield Table(_read_token(_lines(text, max_length), config))
            elif name.endswith((*CSV_SUFFIXES, ".txt")):
                yield _csv(_lines(text, max_length), wanted)
            else:
                yield Table(_read_json_lines(_lines(text, max_length)))
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}; name a table that can be read") from error
    except (ValueError, csv.Error) as error:
        raise DataError(f"{file}: {error}") from error


def may_be_lines(file: Path) -> bool:
    """True for a file that may hold one text per line, if it has no header."""
    return file.name.lower().endswith(".txt") and not file.name.lower().endswith(TOKEN)


def holds_a_list(file: Path) -> bool:
    """True for JSON that begins with a list; other files, such as `dataset_infos.json`, only lie beside the data."""
    try:
        with _text(file, "\n") as text:
            return text.read(1024).lstrip().startswith("[")
    except (OSError, ValueError):
        return False


def decoded(content: bytes) -> str:
    """The text of a whole file, of which bytes that are not UTF-8 become surrogates."""
    encoding = _encoding(content)
    return content.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "replace")


def _encoding(start: bytes) -> str:
    return next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8")


@contextmanager
def _text(file: Path, newline: str) -> Iterator[TextIO]:
    with open_regular(file) as content:
        start = content.read(1024)
        content.seek(0)
        if kind := next((kind for magic, kind in _OTHER_FILES.items() if start.startswith(magic)), None):
            raise ValueError(f"is {kind} by its content; give text, separated by commas or as JSON")
        encoding = _encoding(start)
        if encoding == "utf-8" and start.count(0) > len(start) / 4:
            raise ValueError("looks like UTF-16 without a byte order mark; save it as UTF-8")
        errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
        try:
            yield io.TextIOWrapper(content, encoding, errors, newline)
        except UnicodeDecodeError as error:
            raise ValueError(f"is damaged {encoding.upper()} ({error.reason}); save it as UTF-8") from error


def _lines(text: TextIO, max_length: int) -> Iterator[str]:
    for number, line in enumerate(iter(partial(text.readline, max_length + 1), ""), start=1):
        if len(line) > max_length:
            raise ValueError(f"line {number} is longer than dataset.max_file_mib={max_length >> 20}; fix the file")
        yield line


def _read_json_lines(lines: Iterable[str]) -> Iterator[NumberedRow]:
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        try:
            values = parse_json(line.lstrip("\ufeff"))
        except ValueError as error:
            yield number, f"not a line of JSON ({error})"
            continue
        yield number, values if isinstance(values, dict) else "not a JSON object"


def _read_json(text: TextIO) -> Iterator[NumberedRow]:
    try:
        rows = parse_json(text.read())
    except ValueError as error:
        raise ValueError(f"is no JSON ({error}); fix the file") from error
    if not isinstance(rows, list):
        raise ValueError("is no list of rows; write one JSON object per image into a list")
    for number, values in enumerate(rows, start=1):
        yield number, values if isinstance(values, dict) else "not a JSON object"


def _read_token(lines: Iterable[str], config: DatasetConfig) -> Iterator[NumberedRow]:
    for number, line in enumerate(lines, start=1):
        if found := _TOKEN_LINE.fullmatch(line.rstrip("\r\n")):
            yield number, {config.image_column: found[1], config.caption_column: found[2]}
        elif not is_blank(line):
            yield number, "no image, tab and caption"


def _read_plain(lines: Iterable[str], config: DatasetConfig) -> Iterator[NumberedRow]:
    for number, line in enumerate(lines, start=1):
        if not is_blank(line):
            yield number, {config.caption_column: line.rstrip("\r\n")}


def _csv(lines: Iterator[str], wanted: Set[str]) -> Table:
    """The table whose separator gives most of the wanted columns, and then most columns."""
    num_blank, header = 0, ""
    for header in lines:
        if not (is_blank(header) or _EXCEL_HINT.fullmatch(header)):
            break
        num_blank += 1
    if not is_unicode(header):
        shown = header.encode("utf-8", errors="surrogateescape").decode("latin-1").strip()
        raise ValueError(f"is not UTF-8 (as Latin-1 its header reads {shown!r:.60}); save it as UTF-8")
    columns = {separator: _columns(header, separator) for separator in _SEPARATORS}
    best = max(columns, key=lambda separator: (len(wanted & set(columns[separator])), len(columns[separator])))
    note = f"; the columns are separated by {_SEPARATORS[best]}" if len(columns[best]) > 1 else ""
    if twice := [name for name, number in Counter(columns[best]).items() if number > 1 and name in wanted]:
        raise ValueError(f"has several columns {twice[0]!r}; rename all but one")
    csv.field_size_limit(1 << 24)  # captions of a model can be longer than the standard library expects
    return Table(_read_csv(chain([header], lines), best, columns[best], num_blank), columns[best], note)


def _columns(header: str, separator: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in next(csv.reader([header], delimiter=separator, skipinitialspace=True), []))


def _read_csv(lines: Iterable[str], separator: str, columns: tuple[str, ...], num_blank: int) -> Iterator[NumberedRow]:
    of_row: list[str] = []
    style: dict[str, Any] = {"delimiter": separator, "skipinitialspace": True}
    reader = csv.reader(_kept(lines, of_row), **style)
    next(reader, None)
    of_row.clear()
    try:
        for cells in reader:
            # Another line would belong to the row if a quote is open at the end; rows of several lines are rare.
            if len(of_row) > 1 and len(list(csv.reader([*of_row, "x"], **style))) == 1:
                start = num_blank + reader.line_num - len(of_row) + 1
                raise csv.Error(f"a quote in the row from line {start} on is never closed")
            of_row.clear()
            if len(cells) == len(columns):
                yield num_blank + reader.line_num, dict(zip(columns, cells, strict=True))
            elif cells:
                yield num_blank + reader.line_num, "the row does not have as many cells as the header"
    except csv.Error as error:
        raise ValueError(f"line {num_blank + reader.line_num} is no csv ({error}); fix the file") from error


def _kept(lines: Iterable[str], kept: list[str]) -> Iterator[str]:
    """The lines, each put into a list when it is asked for."""
    for line in lines:
        kept.append(line)
        yield line
