"""`--to transformers`: CLIP's and SigLIP's own classes where they compute the same, else ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import impresa
import tiny_hub
from impresa.errors import ConfigError
from impresa.export import export_run
from impresa.export.check import differences
from tiny_pair import pair_experiment
from tiny_run import HEARING, finished_run
from untrained_run import BARE, MRL, save_untrained, untrained

OURS = (*BARE, *MRL, "vision_encoder.pre_norm=true", "dataset.resize=squash")


@pytest.mark.parametrize(
    "overrides",
    [OURS, (*OURS, "vision_encoder.patch_bias=false", "text_encoder.activation=quick_gelu", "dataset.resize=crop")],
)
def test_our_towers_are_a_clip_model(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    from transformers import CLIPModel, CLIPProcessor

    run = untrained(tmp_path / "run", *overrides)
    folder = export_run(run, tmp_path / "out", to="transformers")
    assert list(differences("transformers", folder, run)) == []
    CLIPModel.from_pretrained(folder)
    CLIPProcessor.from_pretrained(folder)
    assert "loading needs no Impresa" in (folder / "README.md").read_text()


@pytest.mark.parametrize(("make", "width"), [(tiny_hub.clip, 20), (tiny_hub.clip, 8), (tiny_hub.siglip, 32)])
@pytest.mark.parametrize("size", [32, 48])
def test_a_pretrained_pair_is_what_it_came_from(
    make: Callable[[Path], Path], width: int, size: int, tmp_path: Path
) -> None:
    config = pair_experiment(make(tmp_path / "hub"), width, projection="none")
    config = replace(config, dataset=replace(config.dataset, image_size=size))
    run = save_untrained(tmp_path / "run", config)
    folder = export_run(run, tmp_path / "out", to="transformers")
    assert list(differences("transformers", folder, run)) == []
    assert ("SiglipModel" if make is tiny_hub.siglip else "CLIPModel") in (folder / "README.md").read_text()


TEXTS = [
    "A red circle",
    "two blue squares above a green star " * 9,
    "",
    "the words <|end|> and <|pad|>",
    "Ünïcödé  \n x",
]


def test_the_tokenizer_gives_the_same_ids_after_it_is_read_back(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    run = untrained(tmp_path / "run", *OURS)
    folder = export_run(run, tmp_path / "out", to="transformers")
    theirs = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, truncation=True, return_tensors="pt")
    ids, mask = impresa.load(run, "cpu").preprocessing.texts(TEXTS)
    assert torch.equal(theirs["input_ids"], ids)
    assert torch.equal(theirs["attention_mask"].bool(), mask)


def test_other_towers_are_our_classes_and_known_in_any_order(tmp_path: Path) -> None:
    """In new processes, some 10 s each: with the code beside the weights, and without it when impresa was imported
    first. Where transformers was, as in this process, the classes are registered at once."""
    folder = export_run(finished_run(), tmp_path / "out", to="transformers")
    assert list(differences("transformers", folder, finished_run())) == []
    assert "memory tokens" in (folder / "README.md").read_text()
    use = f"m = AutoModel.from_pretrained({str(folder)!r}{{}}); p = AutoProcessor.from_pretrained({str(folder)!r}{{}});"
    use += "print(type(m).__name__, m(**p(text=['a', 'b'], images=[Image.new('RGB', (9, 5))])).logits_per_image.shape)"
    head = "from PIL import Image; from transformers import AutoModel, AutoProcessor;"
    for code in (
        head + use.replace("{}", ", trust_remote_code=True"),
        "import impresa, sys; assert 'transformers' not in sys.modules;" + head + use.replace("{}", ""),
    ):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout == "ImpresaModel torch.Size([1, 2])\n", done.stderr[-2000:]


def test_our_model_can_be_saved_and_needs_its_weights(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    folder = export_run(finished_run(), tmp_path / "out", to="transformers")
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert list(differences("transformers", tmp_path / "again", finished_run())) == []
    with pytest.raises(ConfigError, match="use from_pretrained"):
        AutoModel.from_config(AutoConfig.from_pretrained(folder))


def test_our_classes_hear_too(tmp_path: Path) -> None:
    run = untrained(tmp_path / "run", *HEARING)
    folder = export_run(run, tmp_path / "out", to="transformers")
    assert "audio encoder" in (folder / "README.md").read_text()
    assert list(differences("transformers", folder, run)) == []
