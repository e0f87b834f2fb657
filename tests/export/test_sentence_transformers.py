"""`--to sentence-transformers`: the library's own modules where they compute the same, which need no code of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import impresa
import tiny_hub
from impresa.config.encoder import EncoderConfig
from impresa.export import export_run
from impresa.export.check import differences
from pictures import photo
from tiny_pair import pair_experiment
from untrained_run import BARE, MRL, save_untrained, untrained

TEXTS = ["A red circle", "two blue squares above a green star " * 9, "the words <|end|>"]


def needs_code(folder: Path) -> bool:
    return (folder / "modeling_impresa.py").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        (BARE[0], *MRL, "vision_encoder.projection=mlp", "text_encoder.projection=mlp"),
        (*BARE, "vision_encoder.patch_bias=false", "vision_encoder.activation=quick_gelu"),
        (BARE[0], "vision_encoder.projection=linear", "text_encoder.pooling=mean", "text_encoder.projection=mlp"),
        (*BARE, "vision_encoder.pre_norm=true", "dataset.resize=squash"),
    ],
)
def test_our_towers_are_a_route_each(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    run = untrained(tmp_path / "run", *overrides)
    folder = export_run(run, tmp_path / "out", to="sentence-transformers")
    assert not needs_code(folder)
    assert list(differences("sentence-transformers", folder, run)) == []


def test_truncate_dim_gives_each_dimension(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    run = untrained(tmp_path / "run", BARE[0], *MRL)
    folder, own = export_run(run, tmp_path / "out", to="sentence-transformers"), impresa.load(run, "cpu")
    for dim in (16, 8, 4):
        model: Any = SentenceTransformer(str(folder), truncate_dim=dim, device="cpu")
        for ours, inputs in ((own.encode_text, TEXTS), (own.encode_image, [photo(16, 16), photo(40, 40)])):
            got = model.encode(inputs, normalize_embeddings=True)
            np.testing.assert_allclose(got, ours(inputs, dim=dim), atol=1e-4)
            assert got.shape[1] == dim


@pytest.mark.parametrize(
    ("vision", "text", "projection"),
    [
        (tiny_hub.clip, tiny_hub.clip, "none"),
        (tiny_hub.siglip, tiny_hub.siglip, "none"),
        (tiny_hub.siglip, tiny_hub.bert, "mlp"),
        (tiny_hub.dinov2, tiny_hub.bert, "mlp"),
        (tiny_hub.dinov2, tiny_hub.clip, "none"),
    ],
)
def test_pretrained_towers_need_no_code(
    vision: Callable[[Path], Path], text: Callable[[Path], Path], projection: str, tmp_path: Path
) -> None:
    width = 32 if vision is tiny_hub.siglip else 20
    config = pair_experiment(vision(tmp_path / "vision"), width, projection=projection)
    tower = EncoderConfig(backbone=str(text(tmp_path / "text")), embed_dim=width, projection=projection)  # type: ignore[arg-type]
    run = save_untrained(tmp_path / "run", replace(config, text_encoder=tower))
    folder = export_run(run, tmp_path / "out", to="sentence-transformers")
    assert not needs_code(folder)
    assert list(differences("sentence-transformers", folder, run)) == []


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ((), "memory tokens"),
        ((BARE[0], "vision_encoder.use_perceiver=true"), "Perceiver"),
        ((BARE[0], "text_encoder.use_attention_pooling=true"), "attention pooling"),
        ((BARE[0], "vision_encoder.pooling=mean"), "class token"),
        ((BARE[0], "vision_encoder.stem=conv"), "stem: conv"),
        ((BARE[0], "dataset.resize=pad"), "resize: pad"),
    ],
)
def test_other_towers_are_our_module_and_the_reason_is_told(
    overrides: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    run = untrained(tmp_path / "run", *overrides)
    folder = export_run(run, tmp_path / "out", to="sentence-transformers")
    assert needs_code(folder)
    readme = " ".join((folder / "README.md").read_text().split())
    assert reason in readme
    assert "`trust_remote_code=True`" in readme
    assert list(differences("sentence-transformers", folder, run)) == []


def test_prompts_are_those_of_the_run(tmp_path: Path) -> None:
    run = untrained(tmp_path / "run", BARE[0], "text_encoder.prompts.query='query: '")
    folder = export_run(run, tmp_path / "out", to="sentence-transformers")
    assert json.loads((folder / "config_sentence_transformers.json").read_text())["prompts"]["query"] == "query: "
