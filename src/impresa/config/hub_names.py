"""Names of data sets on the Hugging Face hub: `hub://ORG/NAME@REVISION:CONFIG#SPLIT`, of which `ORG/NAME` is enough."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

HUB = "hub://"
SUFFIX = ".arrow"
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
"""Files that `save_to_disk` writes beside the rows of one split, and above the folders of several."""
_NAME = re.compile(
    r"(?P<id>[\w-][\w.-]*(?:/[\w-][\w.-]*)?)(?:@(?P<revision>[\w./-]+))?(?::(?P<config>[^:#@/]+))?(?:#(?P<split>[\w.]+))?"
)


@dataclass(frozen=True)
class HubName:
    """One split of one configuration of a data set."""

    id: str
    revision: str | None = None
    """A commit, tag or branch; None is the newest."""
    config: str | None = None
    """None is the default one."""
    split: str | None = None
    """None is `train`, or the only one."""


def is_hub_name(path: str) -> bool:
    """True for a path that says by its beginning that it is a name on the hub."""
    return path.startswith(HUB)


def is_on_hub(path: str) -> bool:
    """True for the path of data that are known to be of the `datasets` library, if it is a name on the hub."""
    return is_hub_name(path) or not os.path.exists(os.path.expanduser(path))


def is_saved(path: Path) -> bool:
    """True for a folder that `save_to_disk` wrote, of one split or of several."""
    return any((path / name).is_file() for name in (SAVED, SAVED_SPLITS))


def hub_name(path: str) -> HubName | None:
    """The parts of a name, with or without `hub://`; None for a file or folder that is there.

    Raises:
        ValueError: it is neither; the message is the reason alone, with the fix.
    """
    if not is_on_hub(path):
        return None
    found = _NAME.fullmatch(path.removeprefix(HUB))
    if found is None:
        fix = f"write {HUB}ORG/NAME, and behind it what is needed of @REVISION:CONFIG#SPLIT"
        if is_hub_name(path):
            raise ValueError(f"is no name of a data set; {fix}")
        raise ValueError(f"does not exist; name a folder of save_to_disk, or {fix}")
    return HubName(**found.groupdict())
