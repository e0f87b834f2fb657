"""Several devices: the same embeddings in the same order, errors as in one process, and no process that stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from impresa.errors import ConfigError, DataError
from impresa.run_dir.load import load_embedder
from impresa.tasks.alignment.embedder import EmbeddingModel
from pictures import png
from tiny_run import finished_run

TEXTS = [f"circle number {i}" for i in range(11)]
TWO = ["cpu", "cpu"]


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    return load_embedder(finished_run(), "cpu")


def test_two_processes_give_the_embeddings_of_one_in_their_order(
    model: EmbeddingModel, own_children: Callable[[], list[BaseProcess]]
) -> None:
    alone = model.encode_text(TEXTS, batch_size=2)
    together = model.encode_text(TEXTS, batch_size=2, devices=TWO)
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)
    assert own_children() == []
    assert model.device == torch.device("cpu")


def test_an_image_that_cannot_be_read_is_named_as_in_one_process(
    model: EmbeddingModel, tmp_path: Path, own_children: Callable[[], list[BaseProcess]]
) -> None:
    (tmp_path / "good.png").write_bytes(png(1))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    pictures = [str(tmp_path / name) for name in ("good.png", "good.png", "bad.png")]
    with pytest.raises(DataError) as alone:
        model.encode_image(pictures, batch_size=1)
    with pytest.raises(DataError) as together:
        model.encode_image(pictures, batch_size=1, devices=TWO)
    assert str(together.value) == str(alone.value)
    assert str(alone.value).startswith("images[2]: ")
    assert own_children() == []


def test_ctrl_c_ends_the_processes(model: EmbeddingModel, own_children: Callable[[], list[BaseProcess]]) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    many = [Image.new("RGB", (64, 64), (i % 256, 0, 0)) for i in range(20_000)]

    def stop() -> None:
        while len(own_children()) < len(TWO):
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            model.encode_image(many, batch_size=1, devices=TWO)
    finally:
        signal.signal(signal.SIGINT, before)
    assert own_children() == []


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"devices": "cpu"}, "devices: got str; give a list of them, or a single one as device="),
        ({"devices": ["cpu"]}, "devices: got 1, which need no processes; give two, or device="),
        ({"devices": []}, "devices: got 0, which need no processes"),
        ({"devices": ["cpu", "nowhere"]}, "devices[1]: nowhere cannot be used here"),
        ({"devices": TWO, "device": "cpu"}, "device: contradicts devices; give one of them"),
    ],
)
def test_what_is_no_list_of_devices_is_refused(model: EmbeddingModel, options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as fault:
        model.encode_text(TEXTS, **options)
    assert str(fault.value).startswith(line)


def test_a_process_that_dies_is_told_of(model: EmbeddingModel, own_children: Callable[[], list[BaseProcess]]) -> None:
    def kill_one() -> None:
        while not (children := own_children()):
            time.sleep(0.05)
        children[0].kill()

    threading.Thread(target=kill_one, daemon=True).start()
    with pytest.raises(ConfigError, match="devices: a process ended without an answer"):
        model.encode_text(TEXTS, batch_size=1, devices=TWO)
    assert own_children() == []


def test_a_script_without_a_guard_is_told_to_have_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    line = "impresa.load(sys.argv[1], 'cpu').encode_text(['a', 'b'], batch_size=1, devices=['cpu', 'cpu'])"
    script.write_text(f"import sys, impresa\n{line}\n")
    done = subprocess.run(
        [sys.executable, str(script), str(finished_run())], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode != 0
    assert "begins with `if __name__ == '__main__':`" in done.stderr.splitlines()[-1]
