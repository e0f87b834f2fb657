"""The tables of docs/scaling.md are those of the script, whose work for a pair is that of a real step."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.build import build_alignment
from impresa.training.costs import FlopCounter

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "docs")
    import write_scaling

    return write_scaling


def test_the_tables_are_those_of_the_script(script: ModuleType) -> None:
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run python docs/write_scaling.py"


def test_the_work_of_a_pair_is_that_of_a_real_step(script: ModuleType) -> None:
    config = script.experiment("tiny")
    model = build_alignment(config, config.text_encoder.vocab_size, 0)
    size, num_tokens = config.dataset.image_size, script.CAPTION_TOKENS
    ids = torch.randint(1, 1000, (2, num_tokens))
    batch = Batch(
        ids=["a", "b"],
        image=torch.randn(2, 3, size, size),
        input_ids=ids,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
    )
    with FlopCounter() as counter:
        model(batch).loss.backward()
    assert script.reckon(config).flops == pytest.approx(counter.flops / 2, rel=0.1)


def test_the_decoded_pictures_are_as_many_as_the_benchmark_has(script: ModuleType) -> None:
    text = (ROOT / "benchmarks" / "decoding.py").read_text(encoding="utf-8")
    assert f"NUM_PHOTOS, QUALITY = {script.DECODED_JPEGS}, " in text
