"""A study: a base config, the switches that are flipped in it, the seeds, and the metrics that are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BASE = "base"
"""Name of the variant that all others are compared with."""
NULL = "null"
"""Name of the control: the base's config with other seeds, which must show no difference."""
Design = Literal["one-at-a-time", "grid"]


@dataclass(frozen=True)
class Switch:
    """A key, or a config group, and the values that it is given."""

    key: str
    values: tuple[str, ...]
    """Each as it stands after `key=` in an override."""


@dataclass(frozen=True)
class Variant:
    """One config of a study."""

    name: str
    """`base`, `null`, or its changes joined by ", ", as `vision_encoder.depth=3`."""
    overrides: tuple[str, ...] = ()
    """What it changes of the base, in Hydra's grammar."""
    seed_offset: int = 0
    """Added to each seed of the study: 0 for all but the null control."""


@dataclass(frozen=True)
class Study:
    """What is compared with what, decided before the first run."""

    base: str
    """A shipped config, or the path of a YAML file."""
    overrides: tuple[str, ...]
    """Overrides of the base that are no switches."""
    switches: tuple[Switch, ...]
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    """Names of `impresa.evaluation.figures`; the first one is the judge."""
    design: Design = "one-at-a-time"
    null: bool = False
    """Add the null control."""
    title: str = ""
    """The question that the study asks, for the head of its report."""
