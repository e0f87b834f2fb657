"""Where runs are trained: their share of the machine, why they fail, their end with the study, and submitit."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from impresa.ablation import launchers
from impresa.ablation.launchers import Ended, Job, LocalLauncher, SubmititLauncher, TrainInJob, slurm_parameters
from impresa.config.dataset import DatasetConfig
from impresa.config.experiment import ExperimentConfig, TrainerConfig
from impresa.errors import REQUEUE, ConfigError
from impresa.run_dir.lock import locked
from small_study import finished_stand_in, is_trained, planned_runs
from tiny_run import TINY
from waiting import PATIENCE_S, wait_until


def end_of(job: Job) -> Ended:
    wait_until(job.poll)
    ended = job.poll()
    assert ended is not None
    return ended


def python(folder: Path, code: str) -> LocalLauncher:
    """A launcher whose trainings run some code."""
    return LocalLauncher(folder, (sys.executable, "-c", code), num_jobs=1)


def test_jobs_divide_the_cores_and_a_user_may_want_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "num_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def threads(*jobs: int, workers: int = 0) -> list[int]:
        config = ExperimentConfig(dataset=DatasetConfig(num_workers=workers))
        return [launchers.threads_of(config, number) for number in jobs]

    assert threads(1, 2, 3, 8, 20) == [8, 4, 2, 1, 1]
    assert threads(1, 2, 8, workers=2) == [6, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads(1, 2, 8) == [3, 3, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert threads(2) == [4]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores can be told apart on Linux only")
def test_each_job_has_cores_of_its_own(tmp_path: Path) -> None:
    usable = os.sched_getaffinity(0)
    code = "import os, sys; sys.exit(' '.join(map(str, os.sched_getaffinity(0))))"
    launcher = LocalLauncher(tmp_path, (sys.executable, "-c", code), num_jobs=len(usable))
    runs = planned_runs(2)
    used = [end_of(launcher.start(runs[slot % 2], slot)).reason for slot in range(len(usable))]
    assert sorted(int(core) for core in used) == sorted(usable)
    assert os.sched_getaffinity(0) == usable
    assert LocalLauncher(tmp_path, (), num_jobs=len(usable) + 1).cores(0) == set()


def test_jobs_take_turns_on_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    launcher = LocalLauncher(tmp_path, (), num_jobs=4)

    def gpus(slot: int, **settings: object) -> str | None:
        config = ExperimentConfig(trainer=TrainerConfig(**settings))  # type: ignore[arg-type]
        return launcher.environment(config, slot).get("CUDA_VISIBLE_DEVICES")

    assert [gpus(slot) for slot in range(4)] == ["4", "5", "6", "4"]
    assert [gpus(slot, devices=2) for slot in range(2)] == ["4,5", "6,4"]
    assert gpus(0, accelerator="cpu") == gpus(0, devices=5) == "4,5,6"  # as they were
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launchers.visible_gpus() == []


def test_a_run_takes_itself_for_the_only_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.setenv(name, "1")
    env = LocalLauncher(tmp_path, (), num_jobs=1).environment(ExperimentConfig(), 0)
    assert not {"RANK", "WORLD_SIZE", "SLURM_PROCID"} & env.keys()


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        (
            "import sys; print('one', file=sys.stderr); sys.exit('a.b: is wrong; mend it')",
            (1, "a.b: is wrong; mend it"),
        ),
        ("int('many')", (1, "ValueError: invalid literal for int() with base 10: 'many'")),
        ("import sys; sys.exit(3)", (3, "ended with exit code 3 and said nothing")),
        (
            "import os; os.kill(os.getpid(), 9)",
            (-9, "was killed by SIGKILL, as by a system that has no memory left"),
        ),
        ("print('R@1')", (0, "")),
    ],
)
def test_the_reason_is_the_last_line_or_what_killed_it(code: str, ended: tuple[int, str], tmp_path: Path) -> None:
    run = planned_runs(1)[0]
    for _ in range(2):  # a second try has its own reason
        assert end_of(python(tmp_path, code).start(run, 0)) == Ended(*ended)
        code, ended = "import sys; sys.exit(5)", (5, "ended with exit code 5 and said nothing")


def test_a_run_that_does_not_stop_is_killed_with_its_workers(tmp_path: Path) -> None:
    code = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
worker = os.fork()
print(os.getpid(), worker, flush=True) if worker else None
time.sleep(60)
"""
    job = python(tmp_path, code).start(planned_runs(1)[0], 0)
    log = tmp_path / "logs" / "base0.log"
    wait_until(lambda: log.read_text().count("\n") == 2)
    worker = int(log.read_text().split()[-1])
    job.stop()
    time.sleep(0.2)
    assert job.poll() is None
    job.kill()
    assert end_of(job).code == -signal.SIGKILL
    proc = Path(f"/proc/{worker}")
    wait_until(lambda: not proc.exists() or "State:\tZ" in (proc / "status").read_text())


def test_a_training_saves_and_ends_when_its_study_dies(tmp_path: Path) -> None:
    """Some six seconds: a real training, which must import torch."""
    run_dir = tmp_path / "run"
    words = ("train", "shapes", *TINY, "trainer.epochs=100000", "--output-dir", str(run_dir), "--resume")
    process = subprocess.Popen(
        [sys.executable, "-m", "impresa.cli.child", *words],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdin is not None
    try:
        wait_until(lambda: (run_dir / "metrics.csv").exists() or process.poll() is not None)
        process.stdin.close()  # as the system does when the other end is gone
        assert process.wait(timeout=PATIENCE_S) == REQUEUE
    finally:
        process.kill()
    assert (run_dir / "checkpoints" / "last.ckpt").exists()
    assert '"command": [\n    "impresa",\n    "train",' in (run_dir / "environment.json").read_text()
    with locked(run_dir):
        pass


def test_submitit_trains_runs_as_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some three seconds: submitit starts three processes for each job."""
    submitit = pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("STAND_IN_RUN", str(finished_stand_in(tmp_path / "finished")))
    monkeypatch.setenv("STAND_IN_DIARY", str(tmp_path / "diary"))
    monkeypatch.setenv("STAND_IN_FAILS", "losses.type=siglip")
    code = "import sys, stand_in; stand_in.main(sys.argv[1:])"  # a job's standard input is closed
    executor = submitit.LocalExecutor(tmp_path / "slurm")
    launcher = SubmititLauncher(tmp_path / "study", (sys.executable, "-c", code), executor)
    base, siglip = (launcher.start(run, 0) for run in planned_runs(2))
    assert end_of(base) == Ended(0, "")
    assert (tmp_path / "study" / "runs" / "base0" / "manifest.json").exists()
    assert end_of(siglip) == Ended(1, "losses.type: is not what it seems; choose another")
    monkeypatch.setenv("STAND_IN_WAIT", "600")
    job = launcher.start(planned_runs(3)[2], 0)
    wait_until(lambda: "start base1" in (tmp_path / "diary").read_text())
    job.stop()
    assert end_of(job).code != 0
    wait_until(lambda: not is_trained(tmp_path / "study" / "runs" / "base1"))  # nothing of it is left


def test_a_job_whose_time_is_over_saves_and_can_be_queued_again(tmp_path: Path) -> None:
    """The signal comes while the job waits for its training, as submitit's does."""
    pytest.importorskip("submitit")
    log, saved = tmp_path / "log", tmp_path / "saved"
    code = f"""
import pathlib, sys, time
saved = pathlib.Path({str(saved)!r})
if saved.exists(): sys.exit(0)
try: print("begun", flush=True); time.sleep(600)
except KeyboardInterrupt: saved.touch(); sys.exit(130)
"""
    job, again = TrainInJob((sys.executable, "-c", code), log, tmp_path), list[bytes]()

    def time_is_over(*_: object) -> None:
        again.append(pickle.dumps(job.checkpoint()))
        assert saved.exists()

    def press() -> None:
        wait_until(lambda: log.exists() and "begun" in log.read_text())
        os.kill(os.getpid(), signal.SIGUSR2)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        signal.signal(signal.SIGUSR2, time_is_over)
        threading.Thread(target=press).start()
        assert job() == 130
        assert pickle.loads(again[0]).function() == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_settings_of_slurm_are_checked() -> None:
    given = [("partition", "gpu"), ("time", "60"), ("gpus", "1")]
    assert slurm_parameters(given) == {"slurm_partition": "gpu", "timeout_min": 60, "gpus_per_node": 1}
    with pytest.raises(ConfigError) as caught:
        slurm_parameters([("partitoin", "gpu"), ("time", "1:00"), ("gpus", "0")])
    assert caught.value.lines == (
        "--slurm: partitoin is unknown; did you mean partition? there are partition, account, qos, constraint, time, "
        "gpus, cpus and memory",
        "--slurm: time is 1:00; it must be a whole number of minutes from 1",
        "--slurm: gpus is 0; it must be a whole number from 1",
    )


def test_slurm_that_is_not_there_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^--launcher: slurm is not here, there is no srun"):
        launchers.check_slurm([])
    (tmp_path / "srun").touch(mode=0o755)
    launchers.check_slurm([])
    monkeypatch.setattr(launchers, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"needs submitit; pip install 'impresa\[slurm\]'"):
        launchers.check_slurm([])


def test_settings_reach_the_job_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    executor = launchers.slurm_executor(
        tmp_path, [("partition", "gpu"), ("time", "60"), ("gpus", "1"), ("memory", "8")]
    )
    script = executor._executor._make_submission_file_text("train", "1")
    for line in ("--partition=gpu", "--time=60", "--gpus-per-node=1", "--mem=8GB", "--job-name=impresa"):
        assert f"#SBATCH {line}\n" in script
