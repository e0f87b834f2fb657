"""Floating-point operations per second that devices reach at most, by the name that torch has for them."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

import torch

from impresa.config.optimization import Precision
from impresa.errors import ConfigError

TOLD = "IMPRESA_PEAK_TFLOPS"
"""Environment variable with the peak of a device that is not listed, in the precision of the run."""


class Peak(NamedTuple):
    """10^12 operations per second of dense matrix products, by the type of the factors; 0 where there are none."""

    bf16: float
    fp16: float
    tf32: float
    fp32: float


_PEAKS = {
    "B200": Peak(2250, 2250, 1125, 75),
    "H200": Peak(989.4, 989.4, 494.7, 66.9),
    "H100": Peak(989.4, 989.4, 494.7, 66.9),
    "H100 NVL": Peak(835, 835, 417.5, 60),
    "H100 PCIe": Peak(756, 756, 378, 51.2),
    "H20": Peak(148, 148, 74, 44),
    "A100": Peak(312, 312, 156, 19.5),
    "A800": Peak(312, 312, 156, 19.5),
    "A40": Peak(149.7, 149.7, 74.8, 37.4),
    "A30": Peak(165, 165, 82, 10.3),
    "A10": Peak(125, 125, 62.5, 31.2),
    "L40S": Peak(362, 362, 183, 91.6),
    "L40": Peak(181, 181, 90.5, 90.5),
    "L4": Peak(121, 121, 60, 30.3),
    "RTX A6000": Peak(154.8, 154.8, 77.4, 38.7),
    "RTX 5090": Peak(209.5, 209.5, 104.8, 104.8),
    "RTX 4090": Peak(165.2, 165.2, 82.6, 82.6),
    "RTX 3090": Peak(71, 71, 35.6, 35.6),
    "V100": Peak(0, 125, 0, 15.7),
    "T4": Peak(0, 65, 0, 8.1),
    "MI300X": Peak(1307.4, 1307.4, 653.7, 163.4),
}
"""Of the makers' data sheets, without sparsity, products of 16 bits being summed in 32."""


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """The peak of a device in a precision, per second; None where nobody has said it.

    Raises:
        ConfigError: the environment says one that is no number above 0.
    """
    told = os.environ.get(TOLD, "").strip()
    if told:
        try:
            peak = float(told)
        except ValueError:
            peak = 0.0
        if not 0 < peak < float("inf"):
            raise ConfigError(f"{TOLD}: got {told!r}; it must be a number of 10^12 operations per second, such as 312")
        return peak * 1e12
    if device.type != "cuda":
        return None
    found = peak_of(torch.cuda.get_device_name(device))
    return None if found is None else getattr(found, _factors(precision)) * 1e12 or None


def peak_of(name: str) -> Peak | None:
    """The entry all of whose words are in the name of a device, the longest of several."""
    words = set(_words(name))
    fitting = [entry for entry in _PEAKS if words.issuperset(_words(entry))]
    return _PEAKS[max(fitting, key=len)] if fitting else None


def _factors(precision: Precision) -> str:
    if precision == "32-true":
        return "fp32" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return "fp16" if precision == "16-mixed" else "bf16"


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.lower())
