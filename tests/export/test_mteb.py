"""The export for sentence-transformers runs a task of mteb: retrieval of texts by images, on data in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from impresa.data.sources import open_source
from impresa.export import export_run
from impresa.run_dir.load import load_embedder
from tiny_run import finished_run, tiny_experiment
from untrained_run import BARE, untrained

mteb = pytest.importorskip("mteb")
