"""The scripts for clusters: the shell reads them, and what they call exists with these options and settings."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from impresa.config import load_experiment
from impresa.errors import REQUEUE
from impresa.training.processes import BY_SCHEDULER

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = ("slurm.sh", "torchrun.sh", "skypilot.yaml")


@pytest.mark.parametrize("name", SCRIPTS[:2])
def test_the_shell_reads_it(name: str) -> None:
    assert subprocess.run(["bash", "-n", str(EXAMPLES / name)], check=False).returncode == 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_training_that_it_starts_can_be(name: str) -> None:
    text = (EXAMPLES / name).read_text().replace("\\\n", " ")
    (command,) = re.findall(r"(?:^|srun |-m |  )impresa (train .*)$", text, flags=re.MULTILINE)
    verb, config, *words = shlex.split(command)
    assert (verb, config) == ("train", "clip")
    assert words[0] == "--output-dir"
    assert words[2] == "--resume"  # the first start, too, where there is nothing to resume
    load_experiment(config, words[3:])


def test_torchrun_has_its_options_and_passes_a_scheduler_s_signals_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.run import get_args_parser

    text = (EXAMPLES / "torchrun.sh").read_text().replace("\\\n", " ")
    for name, value in re.findall(r"^export (\w+)=([\w,]+)$", text, flags=re.MULTILINE):
        monkeypatch.setenv(name, value)
    words = shlex.split(text.split("exec torchrun", 1)[1].replace("$NODES", "2").replace("$GPUS", "8"))
    given = get_args_parser().parse_args(words)
    assert (given.nnodes, given.nproc_per_node, given.max_restarts, given.module) == ("2", "8", 3, True)
    assert {number.name for number in BY_SCHEDULER} < set(given.signals_to_handle.split(","))


def test_slurm_s_job_is_warned_and_queued_again() -> None:
    text = (EXAMPLES / "slurm.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, flags=re.MULTILINE))
    assert options["requeue"] == ""
    assert re.fullmatch(r"USR1@\d+", options["signal"])  # to the processes of srun, not to the shell (B:)
    assert f'"$code" -eq {REQUEUE}' in text


def test_skypilot_s_task_is_a_mapping_of_its_sections() -> None:
    from omegaconf import OmegaConf

    task = OmegaConf.to_container(OmegaConf.load(EXAMPLES / "skypilot.yaml"))
    assert isinstance(task, dict)
    assert set(task) == {"name", "resources", "file_mounts", "workdir", "setup", "run"}
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [REQUEUE]
