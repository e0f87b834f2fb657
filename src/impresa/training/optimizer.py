"""The optimizer of a run, by its name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from impresa.config.optimization import OptimizationConfig
from impresa.training.parameter_groups import parameter_groups
from impresa.training.shared import is_shared


def build_optimizer(model: nn.Module, config: OptimizationConfig) -> torch.optim.Optimizer:
    """The optimizer of the trainable parameters, with the groups of `parameter_groups`.

    The fused implementation is used where there is one, except under 16-bit mixed precision, where gradients are
    clipped after they are unscaled and a fused optimizer would unscale them itself.

    Raises:
        ConfigError: its library is missing, or it has nothing to act on in this model.
    """
    groups = list(parameter_groups(model, config))
    for group in groups:
        kinds = set(map(is_shared, group["params"]))
        if len(kinds) > 1:  # torch steps no such mixture at once
            group |= {"fused": False, "foreach": False}
        elif kinds == {True} and config.optimizer == "sgd":  # nor fused by SGD what is shared out
            group["fused"] = False
    can_fuse = all(p.device.type in ("cuda", "cpu") and p.is_floating_point() for g in groups for p in g["params"])
    fused = config.precision != "16-mixed" and can_fuse
    adam: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    match config.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, lr=config.lr, momentum=config.betas[0], fused=fused)
        case "adam":
            return torch.optim.Adam(groups, **adam, fused=fused)
        case "adamw":
            return torch.optim.AdamW(groups, **adam, fused=fused)
        case "muon":
            return MuonAndAdamW(groups, {**adam, "fused": fused})
        case "adamw8bit":
            from impresa.training.eight_bit import adamw_in_eight_bits

            return adamw_in_eight_bits(groups, adam)


def check_optimizer(model: nn.Module, config: OptimizationConfig, device: torch.device) -> None:
    """Refuse, before anything is written, an optimizer that will not run on this device or has nothing to act on.

    Raises:
        ConfigError: says why.
    """
    for _ in parameter_groups(model, config):
        pass
    if config.optimizer == "adamw8bit":
        from impresa.training.eight_bit import check_eight_bits

        check_eight_bits(device)


class MuonAndAdamW(torch.optim.Optimizer):
    """torch's Muon (Jordan 2024) for the groups with `is_of_muon`, and AdamW for the others, as one optimizer: groups,
    state, gradient scaling and checkpoints are those of any other.

    Muon moves a matrix by its averaged gradient, made orthogonal, times 0.2 sqrt(longer side): so long are the steps of
    AdamW, whose learning rate and weight decay hold for both (Liu et al. 2025, arXiv:2502.16982). The decay of its
    average is 0.95.

    Args:
        groups: of `parameter_groups`.
        adamw: the settings of AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], adamw: dict[str, Any]) -> None:
        self._of_muon: torch.optim.Optimizer = torch.optim.Muon(
            [group for group in groups if group["is_of_muon"]], adjust_lr_fn="match_rms_adamw"
        )
        others = [group for group in groups if not group["is_of_muon"]]
        self._others = torch.optim.AdamW(others, **adamw) if others else None
        super().__init__(groups, {})  # both have written their defaults into the groups, which they share

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of both. Groups and state are handed over each time, for a checkpoint that is loaded makes new ones.

        Args:
            closure: none is supported, as training uses none.
        """
        for optimizer, of_muon in ((self._of_muon, True), (self._others, False)):
            if optimizer is not None:
                optimizer.param_groups = [group for group in self.param_groups if group["is_of_muon"] == of_muon]
                optimizer.state = self.state
                optimizer.step()
