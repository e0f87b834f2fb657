"""What a run has imported when its first step is done: nothing that only its end, or another run, needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tiny_run import TINY

HEAVY = {
    *("matplotlib", "transformers", "pyarrow", "pandas", "sklearn", "scipy", "torchmetrics", "lightning"),
    *("tensorboard", "torch.utils.tensorboard", "wandb", "torch.distributed.elastic", "torch.distributed.launcher"),
    *("peft", "bitsandbytes", "accelerate", "soundfile", "impresa.reports", "impresa.tasks.alignment.evaluate"),
}
CODE = """
import json, os, sys
from impresa.cli.main import main
from impresa.training import loop

make = loop.train_step

def first(*given):
    make(*given)
    print(json.dumps(sorted(sys.modules)), flush=True)
    os._exit(0)

loop.train_step = first
main(sys.argv[1:])
"""


def test_the_first_step_waits_for_no_library_that_it_does_not_need(tmp_path: Path) -> None:
    words = ("train", "shapes", *TINY, "trainer.logging.tensorboard=true", "--output-dir", str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", CODE, *words], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert "torch" in loaded
    assert not HEAVY & loaded
