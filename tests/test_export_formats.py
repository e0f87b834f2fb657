"""Exported alignments: another library computes what the run computes, and a folder that does not is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import impresa
from impresa.errors import CheckpointError
from impresa.export import export_run
from impresa.export.check import check_export, differences
from tiny_run import finished_run

TEXTS = ["a red circle", "two blue squares above a green star", "a cat"]


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_run(finished_run(), tmp_path_factory.mktemp("out") / "encoders", to="safetensors")


def test_the_encoders_are_used_by_their_folder_alone(encoders: Path) -> None:
    run, exported = impresa.load(finished_run(), "cpu"), impresa.load(encoders, "cpu")
    torch.testing.assert_close(exported.encode_image(pictures()), run.encode_image(pictures()))
    weights = load_file(encoders / "model.safetensors")
    readme = (encoders / "README.md").read_text()
    assert all(f"`{name.split('.')[0]}.`" in readme for name in weights)


def test_sentence_transformers_embeds_texts_and_images_alike(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = export_run(finished_run(), tmp_path / "model", to="sentence-transformers")
    run = impresa.load(finished_run(), "cpu")
    model: Any = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    for ours, inputs in ((run.encode_text, TEXTS), (run.encode_image, pictures())):
        np.testing.assert_allclose(model.encode(inputs), ours(inputs), atol=1e-5)
        short = model.encode(inputs, truncate_dim=4, normalize_embeddings=True)
        np.testing.assert_allclose(short, ours(inputs, dim=4), atol=1e-5)


def test_a_difference_is_named_and_leaves_nothing(
    encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not list(differences("safetensors", encoders, finished_run()))

    def damaged(config: object, run_dir: Path, folder: Path) -> None:
        (folder / "half").write_text("x")

    monkeypatch.setattr("impresa.export.safetensors.write_encoders", damaged)
    with pytest.raises(CheckpointError, match=r"out: fails its check, and nothing was written \(.*no run directory"):
        export_run(finished_run(), tmp_path / "out", to="safetensors", check=True)
    assert list(tmp_path.iterdir()) == []


def test_the_check_says_which_output_differs(encoders: Path) -> None:
    from impresa.export.check import _difference

    (line,) = _difference("text embeddings at 4 dimensions", torch.ones(2, 4), torch.ones(2, 4) + 2e-4)
    assert line == "text embeddings at 4 dimensions: differ by 0.0002, more than 0.0001"
    assert list(_difference("x", torch.full((1, 2), torch.nan), torch.ones(1, 2)))
    assert check_export("safetensors", encoders, encoders, finished_run()) is None


def test_onnx_takes_any_batch_and_length(tmp_path: Path) -> None:
    """The check runs batches of 1, 3 and 8 by onnxruntime in its own process; about 10 s, most of it the exporter's."""
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = export_run(finished_run(), tmp_path / "onnx", to="onnx", check=True)
    run = impresa.load(finished_run(), "cpu")
    session = onnxruntime.InferenceSession(folder / "text.onnx")
    for texts in (TEXTS, TEXTS[:1]):
        ids, mask = run.preprocessing.texts(texts)
        (got,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.long().numpy()})
        np.testing.assert_allclose(got, run.encode_text(texts), atol=1e-5)
