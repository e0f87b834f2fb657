"""The option `--device` of commands that use a model."""

from __future__ import annotations

import argparse

from impresa.errors import ConfigError


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")


def checked_device(name: str | None) -> str | None:
    """The device, once it has been tried.

    Raises:
        ConfigError: it does not exist here.
    """
    import torch

    if name is not None:
        try:
            if torch.zeros(1, device=name).is_meta:
                raise RuntimeError("it holds no numbers")
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"--device: {name} cannot be used here ({reason}); give cpu, or leave it out") from error
    return name
