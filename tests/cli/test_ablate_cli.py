"""`impresa ablate`: what it prints and refuses, and that it goes on. But in one test the trainings are stand-ins."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("impresa.ablation.collect")
from impresa.ablation import timing
from impresa.ablation.runner import STOPPING
from impresa.ablation.timing import RunTime
from impresa.cli import ablate
from impresa.cli.main import main
from impresa.errors import TrainingError
from impresa.evaluation.figures import figures
from impresa.evaluation.results import read_evaluation
from impresa.run_dir.environment import is_finished
from impresa.training.run import train
from small_study import is_trained
from stand_in import COMMAND
from tiny_run import TINY, finished_run, tiny_experiment, without_charts
from waiting import wait_until

SWITCH = ("ablate", "shapes", *TINY, "losses.type=clip,siglip")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, where each training is a stand-in that copies a finished run."""
    monkeypatch.setenv("STAND_IN_RUN", str(finished_run()))
    monkeypatch.setenv("STAND_IN_DIARY", str(tmp_path / "diary"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setattr(ablate, "TRAIN_HERE", COMMAND)
    monkeypatch.setattr(timing, "from_finished", lambda _: None)
    monkeypatch.setattr(timing, "from_trial", lambda *_: RunTime(60.0, "by a guess"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def diary(folder: Path) -> list[str]:
    path = folder.parent / "diary"
    return path.read_text().splitlines() if path.exists() else []


def test_a_study_ends_with_its_folder_and_goes_on_in_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SWITCH, "--seeds", "2", "--jobs", "2"]) == 0
    out, err = capsys.readouterr()
    study = Path(out.splitlines()[-1])
    assert re.fullmatch(r"ablations/shapes/\d{8}-\d{6}", str(study))
    assert {"study.json", "logs", "runs", "ablation.html", "ablation.json"} <= {path.name for path in study.iterdir()}
    assert ".lock" not in {path.name for path in study.iterdir()}
    assert "losses.type=siglip" in out
    first, when, seeds, power, *lines = err.splitlines()
    assert first == "4 runs (2 variants x 2 seeds): 0 finished, 4 to do"
    assert when == "time: about 0:02:00, 2 at once (0:01:00 a run, by a guess)"
    assert seeds == "2 seeds: no verdict is given with fewer than 5, only estimates"
    assert re.match(r"power: 5 seeds can see 2\.\d standard deviations of R@1 over seeds .*--pilot 3", power)
    assert sum("finished in" in line for line in lines) == 4
    record = json.loads((study / "study.json").read_text())
    assert record["study"]["base"] == "shapes"
    assert {run["folder"] for run in record["runs"]} == {f"runs/{path.name}" for path in (study / "runs").iterdir()}
    before = len(diary(folder))
    assert main([*SWITCH, "--seeds", "3", "--output-dir", str(study)]) == 0
    err = capsys.readouterr().err
    assert err.startswith("6 runs (2 variants x 3 seeds): 4 finished, 2 to do\n")
    assert len(diary(folder)) == before + 4  # two runs start and end
    assert main([*SWITCH, "--seeds", "3", "--output-dir", str(study)]) == 0
    assert "time: nothing is left to train" in capsys.readouterr().err
    assert len(diary(folder)) == before + 4


def test_both_spellings_of_a_sweep_are_the_same_study(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SWITCH, "--seeds", "1", "--output-dir", "study"]) == 0
    for words in (("--losses.type", "clip,siglip"), ("--losses.type=choice(clip,siglip)",)):
        capsys.readouterr()
        assert main([*SWITCH[:-1], *words, "--seeds", "0,", "--output-dir", "study"]) == 0
        assert "2 finished, 0 to do" in capsys.readouterr().err


def test_failed_runs_have_a_line_each_and_exit_code_one(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_FAILS", "losses.type=siglip")
    assert main([*SWITCH, "--seeds", "2", "--output-dir", "study"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "study"
    failed = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 2
    reason = "losses.type: is not what it seems; choose another; log: study/logs/"
    assert failed[1].startswith(f"failed: losses.type=siglip, seed 1: {reason}")
    monkeypatch.delenv("STAND_IN_FAILS")
    assert main([*SWITCH, "--seeds", "2", "--output-dir", "study"]) == 0


def test_a_fault_of_the_base_stops_the_study(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_FAILS", "shapes")
    monkeypatch.setenv("STAND_IN_CODE", "2")
    assert main([*SWITCH, "--output-dir", "study"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("base, seed 0: losses.type: is not what it seems")
    assert len(diary(folder)) == 1

    def refuse(*_: object) -> RunTime:
        raise TrainingError("dataset.train_path: holds nothing")

    monkeypatch.setattr(timing, "from_trial", refuse)
    assert main([*SWITCH, "--output-dir", "study"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "dataset.train_path: holds nothing"


def test_the_pilot_comes_first_and_tells_the_power_in_points(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from impresa.ablation import outlook

    scores = iter([0.50, 0.53, 0.56])
    monkeypatch.setattr(outlook, "figures", lambda _: {"recall_at_1": next(scores)})
    assert main([*SWITCH, "--pilot", "3", "--output-dir", "study"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "pilot: the first 3 seeds of the base, 3 of which are to be trained"
    started = [line.partition("] ")[2] for line in lines if line.endswith(": started")]
    assert started[:3] == ["base, seed 0: started", "base, seed 1: started", "base, seed 2: started"]
    assert len(started) == 10
    assert lines[7] == "10 runs (2 variants x 5 seeds): 3 finished, 7 to do"
    power = next(line for line in lines if line.startswith("power: "))
    found = re.match(r"power: 5 seeds can see ([\d.]+) points of R@1 \(80% chance, at 5% false alarms over 1 v", power)
    assert found is not None
    assert 6.5 < float(found[1]) < 7.5  # 2.4 standard deviations of 3 points
    assert power.endswith("; seeds vary by 3 points (2 degrees of freedom)")


def test_a_dry_run_trains_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SWITCH, "--null", "--pilot", "3", "--dry-run", "--output-dir", "study"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "15 runs (3 variants x 5 seeds): 0 finished, 15 to do"
    assert "5% false alarms over 2 variants" in err
    assert list(folder.iterdir()) == []
    assert diary(folder) == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--seeds", "0"], "argument --seeds: 0 is no number of seeds from 1, and no list such as 1,2,3"),
        (["--seeds", "few"], "argument --seeds: few is no number of seeds from 1"),
        (["--seeds", "1,1"], "seeds: got 1 and 1; give different whole numbers"),
        (["--jobs", "0"], "argument --jobs: 0 is not a whole number from 1"),
        (["--metric", "recal_at_1"], "did you mean recall_at_1?"),
        (["--pilot", "9"], "--pilot: is 9 of 5 seeds; give 2 to 5"),
        (["--slurm", "partition=gpu"], "--slurm: says how SLURM runs a job; add --launcher slurm, or leave it out"),
        (["--slurm", "partition"], "partition is no setting; write it as partition=gpu"),
        (["--launcher", "slurm", "--slurm", "speed=9"], "--slurm: speed is unknown"),
        (["losses.typ=clip,siglip"], "losses.typ: unknown key; did you mean losses.type?"),
        (["--output-dir", "run"], "run: holds a run and no study; choose another --output-dir"),
        (["--output-dir", "letter"], "letter: is no folder; choose another --output-dir"),
    ],
)
def test_refusals_are_lines_with_exit_code_two(
    words: list[str], line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").touch()
    (folder / "letter").touch()
    assert main([*SWITCH, *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert line in err
    assert "Traceback" not in err
    assert sorted(path.name for path in folder.iterdir()) == ["letter", "run"]
    assert diary(folder) == []


@pytest.mark.parametrize("words", [["shapes"], ["nowhere", "losses.type=clip,siglip"]])
def test_no_sweep_and_no_config_are_refused(words: list[str], folder: Path) -> None:
    assert main(["ablate", *words]) == 2
    assert list(folder.iterdir()) == []


def test_one_study_at_a_time_writes_into_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys; from pathlib import Path; from impresa.run_dir.lock import locked\n"
    code += "with locked(Path('study')): print(flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    assert main([*SWITCH, "--output-dir", "study"]) == 2
    assert "study: is being trained by process" in capsys.readouterr().err
    other.communicate()
    assert diary(folder) == []


def test_ctrl_c_says_how_to_go_on(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_WAIT", "60")
    monkeypatch.setattr(sys, "argv", ["/bin/impresa", "ablate", "shapes", "losses.type=clip,siglip"])

    def press() -> None:
        while not diary(folder):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    assert main(SWITCH) == 130
    lines = capsys.readouterr().err.splitlines()
    (study,) = (folder / "ablations" / "shapes").iterdir()
    command = f"impresa ablate shapes losses.type=clip,siglip --output-dir ablations/shapes/{study.name}"
    assert lines[-3:] == [STOPPING, f"the study is not finished; `{command}` goes on with it", "interrupted"]


def test_a_real_study_that_was_killed_finds_what_straight_runs_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some 15 seconds: four real trainings, each of which must import torch."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    study, longer = tmp_path / "study", "trainer.epochs=60"
    given = (*SWITCH, longer, "--seeds", "1", "--jobs", "2", "--output-dir", str(study))
    code = "import sys; from impresa.ablation import timing; from impresa.cli.main import main\n"
    code += "timing.from_trial = lambda *_: None; sys.exit(main())"
    killed = subprocess.Popen([sys.executable, "-c", code, *given], stderr=subprocess.DEVNULL)
    wait_until(lambda: len(list(study.glob("runs/*/metrics.csv"))) == 2)
    killed.kill()
    killed.wait()
    run_dirs = list(study.glob("runs/*"))
    wait_until(lambda: not any(map(is_trained, run_dirs)))
    cut = {run_dir for run_dir in run_dirs if not is_finished(run_dir)}
    assert cut  # one of them may have been at its end
    monkeypatch.setattr(timing, "from_trial", lambda *_: None)
    assert main(given) == 0
    without_charts(monkeypatch)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for kind, run in zip(("clip", "siglip"), json.loads((study / "study.json").read_text())["runs"], strict=True):
        run_dir = study / run["folder"]
        assert ("resumed" in (run_dir / "environment.json").read_text()) == (run_dir in cut)
        straight = train(tiny_experiment(longer, f"losses.type={kind}"), tmp_path / kind, command=())
        ours, theirs = (read_evaluation(folder) for folder in (run_dir, straight))
        assert ours is not None
        assert theirs is not None
        assert figures(ours) == pytest.approx(figures(theirs))
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("words", "variants", "judge"),
    [([], 4, "R@1"), (["--design", "grid"], 5, "R@1"), (["--metric", "recall_at_5,recall_at_1"], 4, "R@5")],
)
def test_design_and_metric_make_the_study(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], variants: int, judge: str
) -> None:
    """Two learning rates that the base does not have: alone, or with both losses."""
    assert main([*SWITCH, "optimization.lr=3e-3,4e-3", "--dry-run", *words]) == 0
    err = capsys.readouterr().err
    assert err.startswith(f"{5 * variants} runs ({variants} variants x 5 seeds)")
    assert f"standard deviations of {judge} over seeds" in err
