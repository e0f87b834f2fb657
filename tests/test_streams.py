"""Whatever the terminal's encoding is, what is printed arrives, in ASCII where it must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pictures import write_jsonl
from tiny_run import TINY, finished_run

PRINTING = """
import sys
from impresa.streams import accept_any_text
accept_any_text()
for stream in (sys.stdout, sys.stderr):
    print("a → b… “c” ü \\U0001f600 \\udcff", file=stream)
"""


def told(words: list[str], encoding: str = "ascii", cwd: Path | None = None) -> tuple[int, str, str]:
    """Exit code and output of a command whose streams have this encoding and refuse what it lacks."""
    env = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict", "LC_ALL": "C.UTF-8"}
    done = subprocess.run([sys.executable, *words], capture_output=True, env=env, check=False, cwd=cwd)
    return done.returncode, done.stdout.decode(encoding), done.stderr.decode(encoding)


@pytest.mark.parametrize(
    ("encoding", "line"),
    [
        ("ascii", 'a -> b... "c" \\u00fc \\ud83d\\ude00 \\udcff\n'),
        ("latin-1", 'a -> b... "c" ü \\ud83d\\ude00 \\udcff\n'),
        ("cp1252", "a -> b… “c” ü \\ud83d\\ude00 \\udcff\n"),
        ("utf-8", "a → b… “c” ü \U0001f600 \\udcff\n"),
    ],
)
def test_what_an_encoding_lacks_is_written_in_ascii(encoding: str, line: str) -> None:
    assert told(["-c", PRINTING], encoding) == (0, line, line)


def test_the_c_locale_passes_file_names_through(tmp_path: Path) -> None:
    code = "import sys; from impresa.streams import accept_any_text as a; a(); a(); print(sys.argv[1] + '\\u2192')"
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    env.pop("PYTHONIOENCODING", None)
    done = subprocess.run([sys.executable, "-c", code, "rün"], capture_output=True, env=env, check=False)
    assert done.stdout == "rün->\n".encode(), done.stderr


def test_a_whole_run_in_a_terminal_without_unicode(tmp_path: Path) -> None:
    """Training, evaluation and a check of data; a process each, as only a process has streams of its own."""
    words = ("train", "shapes", *TINY, "trainer.max_steps=1", "--output-dir", "rün")
    code, out, err = told(["-m", "impresa", *words], cwd=tmp_path)
    assert (code, err.count("Traceback")) == (0, 0), err
    assert "image -> text" in out
    assert out.splitlines()[-1] == "r\\u00fcn"
    code, out, err = told(["-m", "impresa", "eval", str(finished_run())])
    assert (code, err.count("Traceback")) == (0, 0), err
    assert "text -> image" in out
    write_jsonl(tmp_path / "data", [{"image": "1.png", "caption": "→", "label": "grün"}])
    code, out, err = told(["-m", "impresa", "data", "check", "data"], cwd=tmp_path)
    assert (code, err) == (0, "")
    assert "gr\\u00fcn: 1" in out
    code, out, err = told(["-m", "impresa", "data", "check", "data", "--json"], cwd=tmp_path)
    assert json.loads(out)["labels"] == {"grün": 1}


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stream_is_no_error(closed: str) -> None:
    command = f"{sys.executable} -m impresa config list {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("shapes" in done.stdout) == (not closed.startswith(">"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("words", ["config schema", "config list", "--help"])
def test_a_full_disk_behind_standard_output_is_one_line(words: str) -> None:
    command = f"{sys.executable} -m impresa {words} > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "standard output: No space left on device\n")
