"""The runs of a study: finished ones are kept, failed ones named, and a study that dies goes on where it was.

The trainings are stand-ins that take no time; `tests/cli/test_ablate_cli.py` has real ones.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from impresa.ablation.folder import check_study_dir
from impresa.ablation.runner import different, failed_lines, standing_of
from impresa.errors import CheckpointError, TrainingError
from impresa.run_dir.lock import locked
from small_study import Silent, finished_stand_in, planned_runs, trained
from stand_in import COMMAND
from waiting import wait_until

Diary = Callable[[], Counter[str]]


@pytest.fixture
def diary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Diary:
    """How often each run was started and has ended, as the stand-ins write it down."""
    path = tmp_path / "diary"
    path.touch()
    monkeypatch.setenv("STAND_IN_RUN", str(finished_stand_in(tmp_path / "finished")))
    monkeypatch.setenv("STAND_IN_DIARY", str(path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return lambda: Counter(path.read_text().splitlines())


def test_each_run_is_trained_once_and_never_again(tmp_path: Path, diary: Diary) -> None:
    study, runs = tmp_path / "study", planned_runs(4)
    runner, view = trained(study, runs)
    assert runner.failures == {}
    assert diary() == Counter(f"{event} {Path(run.folder).name}" for run in runs for event in ("start", "end"))
    assert {folder for event, folder in view.seen if event == "finished"} == {run.folder for run in runs}
    before = diary()
    _, view = trained(study, [*runs, *planned_runs(6)[4:]])  # another seed
    assert (diary() - before).keys() == {"start base2", "end base2", "start siglip2", "end siglip2"}
    assert len(view.seen) == 4
    assert (study / "logs" / "base2.log").read_text().startswith("$ impresa train shapes seed=2 --output-dir ")


def test_a_failed_run_is_kept_with_its_reason_and_tried_again(
    tmp_path: Path, diary: Diary, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, runs = tmp_path / "study", planned_runs(4)
    monkeypatch.setenv("STAND_IN_FAILS", "losses.type=siglip")
    monkeypatch.setenv("STAND_IN_CODE", "2")
    runner, _ = trained(study, runs, num_jobs=1)
    reason = "losses.type: is not what it seems; choose another"
    assert runner.failures == dict.fromkeys(("runs/siglip0", "runs/siglip1"), reason)
    lines = failed_lines(runs, runner.failures, study)
    assert lines[0] == f"failed: losses.type=siglip, seed 0: {reason}; log: {study}/logs/siglip0.log"
    assert diary()["end base1"] == 1
    monkeypatch.delenv("STAND_IN_FAILS")
    runner, _ = trained(study, runs)
    assert runner.failures == {}
    assert diary()["end siglip0"] == diary()["end base0"] == 1


def test_a_fault_that_all_share_is_said_at_once(tmp_path: Path, diary: Diary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_FAILS", "shapes")
    monkeypatch.setenv("STAND_IN_CODE", "2")
    with pytest.raises(TrainingError, match=r"^base, seed 0: losses.type: is not .* so would all others; log: "):
        trained(tmp_path / "study", planned_runs(12), num_jobs=1)
    assert diary() == {"start base0": 1}
    monkeypatch.setenv("STAND_IN_CODE", "1")  # a bug, or a killed process: that of the others may be another
    runner, _ = trained(tmp_path / "study", planned_runs(4), num_jobs=1)
    assert len(runner.failures) == 4


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_study_of_twelve_runs_that_is_killed_repeats_nothing(
    number: int, tmp_path: Path, diary: Diary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some four seconds: fifteen or so processes of Python."""
    study, runs = tmp_path / "study", planned_runs(12)
    monkeypatch.setenv("STAND_IN_WAIT", "0.15")
    script = Path(__file__).parents[1] / "small_study.py"
    killed = subprocess.Popen([sys.executable, str(script), str(study), "12", "2"], stderr=subprocess.DEVNULL)
    wait_until(lambda: sum(line.startswith("end") for line in diary()) >= 4)
    killed.send_signal(number)
    assert killed.wait() != 0
    runner, _ = trained(study, runs)
    assert runner.failures == {}
    ends = {line: times for line, times in diary().items() if line.startswith("end")}
    assert ends == {f"end {Path(run.folder).name}": 1 for run in runs}  # nobody was left behind and wrote beside us
    assert sum(times for line, times in diary().items() if line.startswith("start")) <= 14
    assert not standing_of(runs, study).to_do


def test_ctrl_c_stops_the_runs_before_it_ends(tmp_path: Path, diary: Diary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_WAIT", "20")

    def press() -> None:
        wait_until(lambda: len(diary()) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "study", planned_runs(4))
    for name in ("base0", "siglip0"):
        with locked(tmp_path / "study" / "runs" / name):
            pass  # their processes are gone


def test_a_run_that_another_trains_is_waited_for(tmp_path: Path, diary: Diary, monkeypatch: pytest.MonkeyPatch) -> None:
    study, runs = tmp_path / "study", planned_runs(1)
    monkeypatch.setenv("STAND_IN_UNTIL", str(tmp_path / "go on"))
    waiting = Silent.waiting

    def let_it_go_on(self: Silent, reason: str) -> None:
        waiting(self, reason)
        (tmp_path / "go on").touch()

    monkeypatch.setattr(Silent, "waiting", let_it_go_on)
    words = [*COMMAND, "train", "shapes", "--output-dir", str(study / runs[0].folder)]
    other = subprocess.Popen(words, stdin=subprocess.PIPE)
    wait_until(lambda: bool(diary()))
    _, view = trained(study, runs)
    assert other.wait() == 0
    assert [event for event, _ in view.seen] == ["waiting", "finished"]
    assert "is being trained by process" in view.seen[0][1]
    assert diary() == {"start base0": 1, "end base0": 1}


def test_a_damaged_run_is_named_and_left_alone(tmp_path: Path, diary: Diary) -> None:
    study, runs = tmp_path / "study", planned_runs(2)
    trained(study, runs)
    (study / "runs" / "base0" / "model.safetensors").write_text("bits have flipped")
    standing = standing_of(runs, study)
    assert [run.folder for run in standing.done] == ["runs/siglip0"]
    assert standing.to_do == []
    assert "is not what the training wrote (checksum); delete the run's folder" in standing.damaged["runs/base0"]


def test_equal_runs_are_trained_once_and_the_pilot_comes_first() -> None:
    runs = planned_runs(4)
    same = replace(runs[1], folder=runs[0].folder)  # a value that is the base's own
    assert different([runs[0], same, *runs[2:]]) == [runs[0], *runs[2:]]
    assert [run.folder for run in different(runs, 2)] == ["runs/base0", "runs/base1", "runs/siglip0", "runs/siglip1"]


@pytest.mark.parametrize("name", ["config.yaml", "letter.txt"])
def test_a_folder_of_something_else_is_no_study(name: str, tmp_path: Path) -> None:
    check_study_dir(tmp_path)
    check_study_dir(tmp_path / "new")
    (tmp_path / name).write_text("dear")
    kind = "holds a run and no study" if name == "config.yaml" else "is not empty and no study"
    with pytest.raises(CheckpointError, match=f"{kind}; choose another --output-dir"):
        check_study_dir(tmp_path)
    with pytest.raises(CheckpointError, match="is no folder"):
        check_study_dir(tmp_path / name)
    (tmp_path / "study.json").touch()
    check_study_dir(tmp_path)
