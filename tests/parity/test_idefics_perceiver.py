"""The resampler against transformers' IDEFICS: same weights, same tokens, same values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from impresa.layers.perceiver import PerceiverResampler

DIM, HEADS, LATENTS, LAYERS = 48, 4, 6, 3


@pytest.fixture
def reference() -> torch.nn.Module:
    from transformers import IdeficsConfig
    from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

    config = IdeficsConfig(vision_config={"embed_dim": DIM}, perceiver_config={"qk_layer_norms_perceiver": False})
    module = IdeficsPerceiverResampler(config, DIM, LAYERS, HEADS, DIM // HEADS, LATENTS)
    for parameter in module.parameters():  # norms away from their neutral start, so that each has a say
        torch.nn.init.normal_(parameter, mean=0.1, std=0.3)
    return module


def _from_idefics(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reference's tensors (or their gradients) under our names."""
    ours = {"latents": state["latents"]}
    ours |= {f"norm.{x}": state[f"layer_norm.{x}"] for x in ("weight", "bias")}
    norms = {"norm_tokens": "0.context_layer_norm", "norm_latents": "0.latents_layer_norm", "norm_mlp": "1.ln"}
    linears = {"attention.query": "0.q_proj", "attention.out": "0.output_proj", "up": "1.fc", "down": "1.c_proj"}
    for i in range(LAYERS):
        there, here = f"blocks.{i}.", f"layers.{i}."
        ours |= {f"{here}{a}.{x}": state[f"{there}{b}.{x}"] for a, b in norms.items() for x in ("weight", "bias")}
        ours |= {f"{here}{a}.weight": state[f"{there}{b}.weight"] for a, b in linears.items()}
        ours[f"{here}attention.key_value.weight"] = torch.cat([state[f"{there}0.{x}_proj.weight"] for x in "kv"])
    return ours


def _relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def test_values_and_gradients_equal_those_of_idefics(reference: torch.nn.Module) -> None:
    resampler = PerceiverResampler(dim=DIM, num_latents=LATENTS, num_layers=LAYERS, num_heads=HEADS)
    resampler.load_state_dict(_from_idefics(reference.state_dict()))
    ours_in = torch.randn(2, 11, DIM, requires_grad=True)
    theirs_in = ours_in.detach().clone().requires_grad_()

    ours, theirs = resampler(ours_in), reference(theirs_in)
    assert _relative_error(ours, theirs) < 1e-5

    weight = torch.randn_like(ours)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    assert _relative_error(ours_in.grad, theirs_in.grad) < 1e-5
    gradients = _from_idefics({name: p.grad for name, p in reference.named_parameters()})
    for name, parameter in resampler.named_parameters():
        assert _relative_error(parameter.grad, gradients[name]) < 1e-5, name
