"""Settings that every test shares: no network, one thread per process, deterministic seeds."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess

import pytest

from shared_folder import shared_folder

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    # A shell makes what it sends to the background (`make test &`) deaf to ctrl-c, and with it the commands under test.
    signal.signal(signal.SIGINT, signal.default_int_handler)
for secret in ("WANDB_API_KEY", "TRANSFORMERS_CACHE"):
    os.environ.pop(secret, None)

os.environ["HF_MODULES_CACHE"] = str(shared_folder())  # where transformers copies code: of each process of the tests

gc.disable()  # until all tests are imported, which makes millions of objects and no garbage


def pytest_collection_finish() -> None:
    """Let no collection look at the modules again: a full one took a second, in each test that asks for one, and in
    each process that a test forks."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_notices() -> Iterator[None]:
    """Commands that run inside a test show notices, and libraries silence them: each test starts as a new process."""
    library, root = logging.getLogger("impresa"), logging.root
    before = library.level, [*library.handlers], root.level, root.manager.disable
    yield
    level, library.handlers[:], level_of_root, disabled = before
    library.setLevel(level)
    root.setLevel(level_of_root)
    logging.disable(disabled)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture
def own_children() -> Callable[[], list[BaseProcess]]:
    """The living processes that this test has started. There may be others: an earlier test's loader keeps its workers
    until it is collected."""
    strangers = set(multiprocessing.active_children())
    return lambda: [child for child in multiprocessing.active_children() if child not in strangers]
