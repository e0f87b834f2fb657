"""A run of Weights & Biases: started online or offline, and what it is told."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shlex
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from impresa.config.experiment import ExperimentConfig
from impresa.config.tree import to_tree
from impresa.errors import CheckpointError
from impresa.evaluation.gallery import Gallery
from impresa.files import write_atomic
from impresa.run_dir.layout import WANDB, WANDB_ID

logger = logging.getLogger(__name__)

_LONGEST_ID = 64
NETWORK_PATIENCE_S = 5.0
"""Longest wait for an answer."""


class WandbRun:
    """Hands metrics to a run of Weights & Biases, as `wandb.init` returns it, and ends it with the training run."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def results(self, step: int, found: Mapping[str, float], gallery: Gallery) -> None:
        """Add the figures of the evaluation, named `test/FIGURE`, and its examples as pictures, `test/example_1` and so
        on."""
        import wandb

        from impresa.reports.cards import cards  # which the end of a run needs alone

        self.log(step, {f"test/{name}": value for name, value in found.items()})
        for number, card in enumerate(cards(gallery), start=1):
            self._run.log({f"test/example_{number}": wandb.Image(card.picture, caption=card.text)}, step=step)

    def close(self, *, success: bool) -> None:
        self._run.finish(exit_code=0 if success else 1)


def start_wandb(config: ExperimentConfig, run_dir: Path, *, again: bool = False) -> WandbRun | None:
    """A run of Weights & Biases: online if there is a key and the network answers soon, else offline with a notice.

    None where wandb is not installed, with a notice, or `WANDB_MODE` is `disabled`. `again` goes on with the run of
    this process, whose notices have been given.
    """
    level = logging.DEBUG if again else logging.WARNING
    if find_spec("wandb") is None:
        logger.log(level, "wandb is not installed (pip install 'impresa[wandb]'); training goes on without it")
        return None
    if os.environ.get("WANDB_MODE") == "disabled":
        return None
    import wandb

    settings = config.trainer.logging
    common = {
        "project": settings.project,
        "entity": settings.entity,
        "name": settings.name or config.name,
        "id": _wandb_id(run_dir),
        "resume": "allow",  # kept in offline files as well, so that a later part does not replace an earlier one
        "dir": str(run_dir),
        "tags": list(config.labels.tags),
        "notes": config.labels.description,
        "config": to_tree(config),
        "settings": wandb.Settings(silent=True, console="off", init_timeout=30),
    }
    reason = _why_offline()
    if reason is None:
        try:
            return WandbRun(wandb.init(**common, mode="online"))
        except Exception as error:  # a wrong key, a refusing server: no reason to stop the run
            reason = str(error).splitlines()[0]
    # All parts of a resumed run in one command: it uploads them in order. Until 0.29 it had to be told to append.
    sync = "wandb sync" if _is_at_least(wandb.__version__, 0, 30) else "wandb sync --append"
    parts = f"{shlex.quote(str(run_dir / WANDB))}/offline-run-*"
    logger.log(level, f"wandb: {reason}; logging offline, upload later with `{sync} {parts}`")
    return WandbRun(wandb.init(**common, mode="offline"))


def _wandb_id(run_dir: Path) -> str:
    """The run's id, drawn at its start and kept in its directory. Raises `CheckpointError` for one that is none."""
    path = run_dir / WANDB_ID
    if not path.exists():
        write_atomic(path, secrets.token_hex(6) + "\n")
    with path.open("rb") as file:
        found = file.read(_LONGEST_ID + 2).strip().decode(errors="replace")
    if not re.fullmatch(rf"[A-Za-z0-9_-]{{1,{_LONGEST_ID}}}", found):
        raise CheckpointError(f"{path}: is no id of Weights & Biases; remove it, and a new run begins there")
    return found


def _is_at_least(version: str, *least: int) -> bool:
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and tuple(map(int, found.groups())) >= least


def _why_offline() -> str | None:
    """The reason why Weights & Biases cannot be reached; None when it can."""
    if os.environ.get("WANDB_MODE") == "offline":
        return "WANDB_MODE is offline"
    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = urlparse(address).hostname or ""
    if not (os.environ.get("WANDB_API_KEY") or _netrc_has(host)):
        return "no API key"
    return None if _answers(address) else f"{host} does not answer"


def _netrc_has(host: str) -> bool:
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def _answers(address: str) -> bool:
    """True if a server answers soon. Looking up its name has no time limit, hence the thread."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(address, timeout=NETWORK_PATIENCE_S).close()
        except urllib.error.HTTPError:
            pass  # an answer all the same
        except (OSError, ValueError):
            return
        answered.set()

    threading.Thread(target=ask, daemon=True).start()
    return answered.wait(NETWORK_PATIENCE_S)
