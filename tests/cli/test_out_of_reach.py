"""A model of the hub that is neither in the cache nor to be had is told before anything is imported that takes time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pictures import numbered, write_jsonl

CODE = """
import json, sys
from impresa.cli.main import main
code = main(sys.argv[1:])
print(json.dumps([code, *sorted({"torch", "transformers"} & sys.modules.keys())]))
"""


@pytest.mark.parametrize("words", ["eval clip --data photos", "train clip dataset.train_path=photos --output-dir run"])
def test_one_line_without_any_library(words: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "photos", numbered(2))
    away = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    command = [sys.executable, "-c", CODE, *words.split()]
    done = subprocess.run(command, cwd=tmp_path, env=away, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [2]
    line = done.stderr.splitlines()[-1]
    assert line.startswith("vision_encoder.backbone: openai/clip-vit-base-patch32 cannot be loaded; no folder has this")
    assert "HF_HUB_OFFLINE forbids asking the hub; where there is a network, `hf download openai/clip-vit" in line
    assert not (tmp_path / "run").exists()
