"""The README's first five minutes: its commands as they are written, on a few drawings that stand in for the emoji."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from impresa.cli.main import main
from impresa.data.shapes.scenes import COLOURS
from pictures import png
from tiny_run import without_charts

ROOT = Path(__file__).parents[2]
SMALL = (
    *("dataset.batch_size=8", "dataset.image_size=16", "trainer.max_steps=3", "vision_encoder.dim=16"),
    *("vision_encoder.depth=1", "vision_encoder.embed_dim=16", "text_encoder.embed_dim=16", "text_encoder.dim=16"),
    *("trainer.logging.tensorboard=false", "trainer.accelerator=cpu"),
)


def commands() -> list[list[str]]:
    """The words of each line of the section's block."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The first five minutes")[2]
    block = section.partition("```bash\n")[2].partition("```")[0]
    return [shlex.split(line, comments=True) for line in block.splitlines()]


def write_drawings(folder: Path) -> None:
    """Tables as `examples/emoji.py` writes them, of one-coloured squares."""
    folder.mkdir(parents=True)
    for split, count in (("train", 24), ("val", 8), ("test", 8)):
        names = [f"{COLOURS[number % len(COLOURS)]} square {split} {number}" for number in range(count)]
        rows = [
            {"image": png(number * 9, 20, 20), "caption": name, "texts": [name], "concept": name, "drawing": name}
            for number, name in enumerate(names)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")


def test_the_commands_end_with_a_page_that_finds_drawings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    activate, pip, emoji, train, index, serve = commands()
    assert activate == ["source", ".venv/bin/activate"]
    extras = re.findall(r"\w+", pip[-1])
    assert set(extras) == {"examples", "search", "serve"}
    assert emoji == ["python", "examples/emoji.py"]
    monkeypatch.chdir(tmp_path)
    without_charts(monkeypatch)
    write_drawings(tmp_path / "data" / "emoji")
    assert main([*train[1:], *SMALL]) == 0
    assert main(index[1:]) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", *serve, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found is not None, process.communicate()[1]
        page = httpx.get(found[0], timeout=120)
        assert "<title>Impresa</title>" in page.text
        told = httpx.get(f"{found[0]}/info", timeout=120).json()
        assert (told["name"], told["index"]["rows"]) == ("emoji", 40)
        answer = httpx.post(f"{found[0]}/search", json={"text": "a red square"}, timeout=120).json()
        assert len(answer["results"]) == 20
        assert all(result["thumbnail"] for result in answer["results"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
