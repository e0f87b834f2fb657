"""The code blocks of the guides: Python runs as it stands, on tiny runs in place of the user's; of commands the words
are understood. What they do has tests of its own."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from impresa.cli.main import VERBS, main

ROOT = Path(__file__).parents[2]
GUIDES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]


@dataclass(frozen=True)
class Code:
    page: Path
    line: int
    language: str
    text: str
    is_part: bool
    """True for an indented block: a change to a file, which stands in a list of such."""

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks() -> Iterator[Code]:
    for page in GUIDES:
        text = page.read_text(encoding="utf-8")
        for found in re.finditer(r"^( *)```(\w+)\n(.*?)^ *```$", text, flags=re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, found.start()) + 1
            yield Code(page, line, found[2], textwrap.dedent(found[3]), bool(found[1]))


def commands() -> Iterator[Any]:
    for code in blocks():
        for line in code.text.replace("\\\n", " ").splitlines() if code.language == "bash" else ():
            words = list(takewhile(lambda word: word not in ("&&", ">"), shlex.split(line, comments=True)))
            if words[:1] == ["impresa"]:
                yield pytest.param(words[1:], id=f"{code} {' '.join(words)}")


@pytest.mark.parametrize("words", list(commands()))
def test_commands_are_understood(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    verb = words[0]
    assert verb in VERBS
    seen: list[Any] = []
    module = import_module(f"impresa.cli.{verb.replace('-', '_')}")
    monkeypatch.setattr(module, "run", lambda args, overrides: seen.append(overrides))
    assert main(words) == 0
    assert len(seen) == 1


PYTHON = [code for code in blocks() if code.language == "python" and not code.is_part]
EXTENDING = [code for code in blocks() if code.language == "python" and code.is_part]


@pytest.mark.parametrize("code", PYTHON, ids=str)
def test_python_runs(code: Code, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import code_of_guides

    monkeypatch.chdir(tmp_path)
    with ExitStack() as until:
        names = code_of_guides.surroundings(tmp_path, code.text, monkeypatch, until)
        exec(compile(code.text, str(code), "exec"), names)


@pytest.mark.parametrize("code", EXTENDING, ids=str)
def test_parts_of_files_are_python(code: Code) -> None:
    """An entry of a dict or a case of a match, which is no statement, is put where it belongs."""
    body = textwrap.indent(code.text, "    ")
    for whole in (code.text, f"{{\n{code.text}\n}}", f"def f():\n  match x:\n{body}"):
        try:
            compile(whole, str(code), "exec")
        except SyntaxError:
            continue
        return
    pytest.fail(f"{code} is no Python")
