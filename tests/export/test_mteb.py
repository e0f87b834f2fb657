"""The export for sentence-transformers runs a task of mteb: retrieval of images by texts, on data in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from impresa.data.sources import open_source
from impresa.export import export_run
from impresa.run_dir.load import load_embedder
from tiny_run import tiny_experiment
from untrained_run import BARE, untrained

mteb = pytest.importorskip("mteb")
COUNT = 6


@pytest.mark.parametrize("overrides", [BARE, ()])
def test_a_task_of_retrieval_runs_and_finds_what_the_run_finds(overrides: tuple[str, ...], tmp_path: Path) -> None:
    """With modules of the library, and with ours."""
    from datasets import Dataset
    from mteb.mocks.mock_tasks.retrieval import MockAny2AnyRetrievalT2ITask as Base
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
    from sentence_transformers import SentenceTransformer

    source = open_source(tiny_experiment().dataset, "test")
    samples = [source[number] for number in range(COUNT)]
    texts, images = [sample.captions[0] for sample in samples], [sample.image for sample in samples]

    class Scenes(Base):  # type: ignore[misc, valid-type]
        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            split = {
                "queries": Dataset.from_dict({"id": [f"q{n}" for n in range(COUNT)], "text": texts}),
                "corpus": Dataset.from_dict({"id": [f"d{n}" for n in range(COUNT)], "image": images}),
                "relevant_docs": {f"q{n}": {f"d{n}": 1} for n in range(COUNT)},
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    run = untrained(tmp_path / "run", *overrides)
    folder = export_run(run, tmp_path / "out", to="sentence-transformers")
    model: Any = SentenceTransformer(str(folder), trust_remote_code=not overrides, device="cpu")
    wrapped = SentenceTransformerEncoderWrapper(model)  # mteb takes a model of unknown name for one of texts
    wrapped.mteb_model_meta = wrapped.mteb_model_meta.model_copy(update={"modalities": ["text", "image"]})
    result = mteb.evaluate(wrapped, Scenes(), cache=None, co2_tracker=False, show_progress_bar=False)
    (scores,) = result.task_results[0].scores["test"]
    own = load_embedder(run, "cpu")
    similar = own.similarity(own.encode_text(texts), own.encode_image(images)).numpy()
    wanted = float(np.mean(similar.argmax(axis=1) == np.arange(COUNT)))
    assert scores["recall_at_1"] == pytest.approx(wanted, abs=1e-4)
    assert scores["recall_at_10"] == 1
