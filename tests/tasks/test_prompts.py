"""Prompts: kept in a run, put before texts where they are asked for by name, and no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from impresa.cli.main import main
from impresa.config.encoder import PromptsConfig
from impresa.errors import DataError
from impresa.run_dir.load import load_embedder
from impresa.tasks.alignment.embedder import EmbeddingModel
from impresa.training.run import train
from tiny_run import tiny_experiment, without_charts

TEXTS = ["a red circle", "a blue square"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        without_charts(patch)
        config = tiny_experiment("trainer.epochs=1")
        prompts = PromptsConfig(query="query: ", document="the text ")
        config = replace(config, text_encoder=replace(config.text_encoder, prompts=prompts))
        return train(config, tmp_path_factory.mktemp("prompts") / "run", command=["impresa", "train", "shapes"])


@pytest.fixture(scope="module")
def model(run: Path) -> EmbeddingModel:
    return load_embedder(run, "cpu")


def test_a_prompt_is_put_before_each_text(model: EmbeddingModel) -> None:
    plain, query, document = (model.encode_text(TEXTS, prompt_name=name) for name in (None, "query", "document"))
    assert torch.equal(query, model.encode_text([f"query: {text}" for text in TEXTS]))
    assert torch.equal(document, model.encode_text([f"the text {text}" for text in TEXTS]))
    assert torch.equal(plain, model.encode_text(TEXTS))
    assert not torch.allclose(plain, query, atol=1e-4)
    assert torch.equal(model.encode_text(TEXTS, prompt="query: "), query)
    assert torch.equal(model.encode_text(TEXTS, prompt=""), plain)
    torch.testing.assert_close(model.encode_text(TEXTS[0], prompt_name="query"), query[0])


def test_a_name_that_the_run_does_not_have_is_told_with_those_that_it_has(model: EmbeddingModel) -> None:
    with pytest.raises(DataError, match="prompt_name: 'qurey' is no prompt of this run; it has query and document"):
        model.encode_text(TEXTS, prompt_name="qurey")
    with pytest.raises(DataError, match="prompt: contradicts prompt_name; give one of them"):
        model.encode_text(TEXTS, prompt_name="query", prompt="a ")
    with pytest.raises(DataError, match="prompt: got int; give a string"):
        model.encode_text(TEXTS, prompt=3)  # type: ignore[call-overload]


def test_encode_puts_it_before_the_texts_of_data(run: Path, model: EmbeddingModel, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    words = [str(run), str(tmp_path / "texts.txt"), "--out", str(tmp_path / "out.npy"), "--prompt-name", "query"]
    assert main(["encode", *words]) == 0
    torch.testing.assert_close(
        torch.from_numpy(np.load(tmp_path / "out.npy")), model.encode_text(TEXTS, prompt_name="query")
    )
