"""Ctrl-C while an answer is printed, at a terminal and on a busy machine: it ends the answer and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from impresa.run_dir.save import save_run
from tiny_vlm import answering, picture, samples, tiny_vlm

TIMES = 4
SCRIPT = Path(__file__).parents[1] / "at_a_terminal.py"


@pytest.mark.skipif(sys.platform == "win32", reason="it has no pseudo-terminals")
def test_ctrl_c_stops_an_answer_and_nothing_else(tmp_path: Path) -> None:
    """It takes some five seconds: four commands one after another, beside two processes that take their time."""
    torch.manual_seed(0)
    model = answering(tiny_vlm("decoder.generation.max_new_tokens=100000"))  # an answer without an end
    save_run(tmp_path / "run", model.model, model.config, model.preprocessing, examples=samples())
    picture(0).save(tmp_path / "0.png")
    words = [sys.executable, str(SCRIPT), str(tmp_path / "run"), str(tmp_path / "0.png"), str(TIMES)]
    alone = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm"}  # one thread, for it forks
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=alone, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    sessions = json.loads(done.stdout)
    assert len(sessions) == TIMES
    for verb, code, seen in sessions:
        *_, after = seen.split("^C\n")
        if verb == "ask":
            assert (code, after) == (130, "interrupted\n")
        else:
            assert code == 0
            assert seen.count("^C\ninterrupted; /quit or ctrl-d ends\n") == 2
        assert not any(word in seen for word in ("Traceback", "terminate", "Exception", "Error"))
