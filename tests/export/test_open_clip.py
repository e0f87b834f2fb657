"""`--to open_clip`: the config and the state dict of its own model, held against a small one of the same names.

open_clip itself needs torchvision, so that it is no dependency of these tests; where it is installed the check of the
export loads the folder with it.
"""

from __future__ import annotations

import importlib.util
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import impresa
import tiny_hub
from impresa.errors import CheckpointError, ConfigError
from impresa.export import export_run
from impresa.export.check import differences
from pictures import photo
from tiny_pair import pair_experiment
from tiny_run import HEARING
from untrained_run import BARE, MRL, save_untrained, untrained

TEXTS = ["A red circle", "two blue squares above a star " * 9, "a dog"]


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """One of open_clip's blocks, under its names."""

    def __init__(self, width: int, heads: int, ratio: float, act: type[nn.Module]) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        hidden = int(width * ratio)
        parts = [("c_fc", nn.Linear(width, hidden)), ("gelu", act()), ("c_proj", nn.Linear(hidden, width))]
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        read = self.ln_1(x)
        x = x + self.attn(read, read, read, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Stack(nn.Module):
    def __init__(self, layers: int, *sizes: Any) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(*sizes) for _ in range(layers))


class Visual(nn.Module):
    def __init__(self, embed_dim: int, cfg: dict[str, Any], act: type[nn.Module]) -> None:
        super().__init__()
        width, grid = cfg["width"], cfg["image_size"] // cfg["patch_size"]
        self.conv1 = nn.Conv2d(3, width, cfg["patch_size"], cfg["patch_size"], bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(grid**2 + 1, width))
        self.ln_pre: nn.Module = nn.Identity() if cfg["no_ln_pre"] else nn.LayerNorm(width)
        self.transformer = Stack(cfg["layers"], width, width // cfg["head_width"], cfg["mlp_ratio"], act)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, embed_dim))

    def forward(self, image: Tensor) -> Tensor:
        patches = self.conv1(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(image), 1, -1), patches], dim=1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer.resblocks:
            x = block(x)
        return self.ln_post(x)[:, 0] @ self.proj


class Reference(nn.Module):
    """open_clip's `CLIP(**model_cfg)`: names, shapes and computation."""

    def __init__(
        self,
        embed_dim: int,
        vision_cfg: dict[str, Any],
        text_cfg: dict[str, Any],
        quick_gelu: bool = False,
        init_logit_bias: float | None = None,
    ) -> None:
        super().__init__()
        act = QuickGELU if quick_gelu else nn.GELU
        self.visual = Visual(embed_dim, vision_cfg, act)
        width = text_cfg["width"]
        self.token_embedding = nn.Embedding(text_cfg["vocab_size"], width)
        self.positional_embedding = nn.Parameter(torch.empty(text_cfg["context_length"], width))
        self.transformer = Stack(text_cfg["layers"], width, text_cfg["heads"], text_cfg["mlp_ratio"], act)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        self.logit_scale = nn.Parameter(torch.empty([]))
        if init_logit_bias is not None:
            self.logit_bias = nn.Parameter(torch.tensor(init_logit_bias))
        assert text_cfg["pool_type"] == "eos"
        self.eos_id = text_cfg["eos_id"]

    def encode_text(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.positional_embedding
        mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
        for block in self.transformer.resblocks:
            x = block(x, mask)
        end = (ids == self.eos_id).int().argmax(dim=-1)
        return self.ln_final(x)[torch.arange(len(ids)), end] @ self.text_projection


def held_against_the_reference(run: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    described = json.loads((folder / "open_clip_config.json").read_text())
    model = Reference(**described["model_cfg"]).eval()
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    own = impresa.load(run, "cpu")
    length = described["model_cfg"]["text_cfg"]["context_length"]
    words = AutoTokenizer.from_pretrained(folder)(
        TEXTS, max_length=length, padding="max_length", truncation=True, return_tensors="pt"
    )
    prepare, side = described["preprocess_cfg"], described["preprocess_cfg"]["size"]
    square = torch.tensor(list(photo(side, side).getdata())).view(side, side, 3).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(prepare[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        texts, image = model.encode_text(words["input_ids"]), model.visual(((square - mean) / std)[None])
    for dim in (own.embed_dim, 8, 4):
        for got, wanted in (
            (texts, own.encode_text(TEXTS, dim=dim)),
            (image, own.encode_image([photo(side, side)], dim=dim)),
        ):
            torch.testing.assert_close(F.normalize(got[:, :dim], dim=-1), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "overrides",
    [
        (*BARE, *MRL),
        (*BARE, "vision_encoder.pre_norm=true", "vision_encoder.mlp_ratio=2.7", "losses.type=siglip"),
        (*BARE, "vision_encoder.activation=quick_gelu", "text_encoder.activation=quick_gelu"),
    ],
)
def test_our_towers_are_open_clip_s(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    run = untrained(tmp_path / "run", *overrides)
    held_against_the_reference(run, export_run(run, tmp_path / "out", to="open_clip"))


@pytest.mark.parametrize("width", [20, 8])
def test_a_pretrained_clip_is_open_clip_s(width: int, tmp_path: Path) -> None:
    config = pair_experiment(tiny_hub.clip(tmp_path / "hub"), width, projection="none")
    run = save_untrained(tmp_path / "run", config)
    held_against_the_reference(run, export_run(run, tmp_path / "out", to="open_clip"))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (BARE[1:], "memory tokens are in no other library"),
        (
            (*BARE[:1], "vision_encoder.projection=mlp"),
            "CLIP and SigLIP have no projection before the vision_encoder's head",
        ),
        ((*BARE[:1], "vision_encoder.use_perceiver=true"), "the vision_encoder's Perceiver is in no other library"),
        ((*BARE, *HEARING), "the audio encoder has no place there"),
        (
            (*BARE, "vision_encoder.activation=quick_gelu"),
            "there both towers have gelu or quick_gelu, and here gelu and",
        ),
        ((*BARE, "dataset.resize=pad"), "there the bars beside padded images are grey"),
    ],
)
def test_what_open_clip_has_not_is_refused_with_the_reason_and_the_formats_that_have_it(
    overrides: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    run = untrained(tmp_path / "run", *overrides)
    with pytest.raises(CheckpointError) as caught:
        export_run(run, tmp_path / "out" / "of" / "it", to="open_clip")
    assert str(caught.value).startswith(f"{run}: open_clip cannot hold it ({reason}")
    assert str(caught.value).endswith("; choose --to transformers, sentence-transformers or safetensors")
    assert not (tmp_path / "out").exists()


def test_siglip_is_refused(tmp_path: Path) -> None:
    make: Callable[[Path], Path] = tiny_hub.siglip
    run = save_untrained(tmp_path / "run", pair_experiment(make(tmp_path / "hub"), 32, projection="none"))
    with pytest.raises(CheckpointError, match="the vision_encoder is a siglip_vision_model, and no tower of CLIP"):
        export_run(run, tmp_path / "out", to="open_clip")


def test_the_check_is_open_clip_s_own(tmp_path: Path) -> None:
    run = untrained(tmp_path / "run", *BARE)
    if importlib.util.find_spec("open_clip") is None:
        with pytest.raises(ConfigError, match=r"--check: it needs open_clip, .*; pip install open_clip_torch"):
            export_run(run, tmp_path / "out", to="open_clip", check=True)
        assert not (tmp_path / "out").exists()
    else:
        assert not list(differences("open_clip", export_run(run, tmp_path / "out", to="open_clip"), run))
