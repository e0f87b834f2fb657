"""The old variable of the model cache is honoured by the package itself, in each process and before any library."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

USES = {
    "library": "import impresa; from huggingface_hub import constants; print(constants.HF_HUB_CACHE)",
    "command line": "import sys; from impresa.cli.main import main; main(['config', 'list']); "
    "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)",
    "a process that it starts": "import impresa, subprocess, sys; print(subprocess.check_output([sys.executable, '-c', "
    "'import impresa; from huggingface_hub import constants; print(constants.HF_HUB_CACHE)'], text=True))",
}
TOLD = "TRANSFORMERS_CACHE is passed on as HF_HUB_CACHE=/cache\n"


def told(code: str, **variables: str) -> tuple[str, str]:
    """The last line on standard output, and standard error."""
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_CACHE", "TRANSFORMERS_CACHE")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | variables, capture_output=True, text=True, check=True
    )
    return done.stdout.strip().splitlines()[-1], done.stderr


@pytest.mark.parametrize("code", USES.values(), ids=USES)
def test_the_old_variable_is_passed_on_and_said_once(code: str) -> None:
    assert told(code, TRANSFORMERS_CACHE="/cache") == ("/cache", TOLD)


@pytest.mark.parametrize(
    "variables", [{"HF_HUB_CACHE": "/new"}, {"HF_HUB_CACHE": "/new", "TRANSFORMERS_CACHE": "/cache"}]
)
def test_the_new_variable_is_left_alone(variables: dict[str, str]) -> None:
    assert told(USES["library"], **variables) == ("/new", "")


def test_what_comes_too_late_is_said() -> None:
    code = "from huggingface_hub import constants; import impresa; print('done')"
    _, notice = told(code, TRANSFORMERS_CACHE="/cache")
    assert notice == "TRANSFORMERS_CACHE: not read by transformers 5; import impresa before it, or set HF_HUB_CACHE\n"
