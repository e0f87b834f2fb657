"""`impresa train`: what it prints, where it writes, what it refuses before torch is imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from impresa.cli.main import main
from impresa.config import read_config
from tiny_run import TINY, copy_of_run, without_charts

SHORT = ("train", "shapes", *TINY, "trainer.max_steps=2")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own."""
    without_charts(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_last_line_is_the_run_directory_and_progress_is_elsewhere(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/impresa", *SHORT])
    assert main(SHORT) == 0
    out, err = capsys.readouterr()
    run_dir = Path(out.splitlines()[-1])
    assert re.fullmatch(r"runs/shapes/\d{8}-\d{6}", str(run_dir))
    assert (run_dir / "model.safetensors").exists()
    assert f"report: {run_dir / 'report.html'}" in out
    assert "R@1" in out
    assert "step 2/2  val_loss" in err
    assert "val_loss" not in out
    assert '"impresa",' in (run_dir / "environment.json").read_text()


def test_two_runs_of_the_same_second_have_two_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from impresa.cli import new_folder

    class Clock:
        @staticmethod
        def now() -> Clock:
            return Clock()

        def strftime(self, _: str) -> str:
            return "20250101-000000"

    monkeypatch.setattr(new_folder, "datetime", Clock)
    monkeypatch.setattr(sys, "argv", ["/python/impresa/__main__.py", "train", "shapes"])
    assert new_folder.command_line() == ["python", "-m", "impresa", "train", "shapes"]
    made = [str(new_folder.new_folder("runs", "configs/shapes.yaml")) for _ in range(2)]
    assert made == ["runs/shapes/20250101-000000", "runs/shapes/20250101-000000-2"]


def test_output_dir_is_used_and_kept_safe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "--output-dir", "here"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "here"
    assert main([*SHORT, "--output-dir", "here"]) == 2
    assert capsys.readouterr().err == (
        "here: holds a run; add --resume to continue it, or choose another --output-dir\n"
    )
    (folder / "mine").mkdir()
    (folder / "mine" / "letter.txt").write_text("dear")
    for resume in ([], ["--resume"]):
        assert main([*SHORT, "--output-dir", "mine", *resume]) == 2
        assert capsys.readouterr().err == "mine: is not empty and no run; choose another --output-dir\n"


def test_resume_needs_no_config_and_refuses_another(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy_of_run(folder / "run")
    assert main(["train", "--resume", "--output-dir", "run"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "run"
    assert "this run has finished" in captured.err
    assert main(["train", "shapes", *TINY, "optimization.lr=0.5", "--resume", "--output-dir", "run"]) == 2
    assert capsys.readouterr().err == (
        "optimization.lr: was 0.001 and is 0.5; a resumed run keeps its config, so restore it\n"
    )


def test_resume_without_a_config_needs_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "empty").mkdir()
    for name in ("typo", "empty"):  # not a new run of the default config
        assert main(["train", "--resume", "--output-dir", name, "trainer.epochs=20"]) == 2
        assert capsys.readouterr().err == f"{name}: there is no run to resume; name a config to start one there\n"
    assert [path.name for path in folder.iterdir()] == ["empty"]


def test_resume_without_a_run_starts_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "--resume", "--output-dir", "new"]) == 0
    assert (folder / "new" / "model.safetensors").exists()


def test_a_dry_run_tells_how_long_the_run_takes_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SHORT, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"vision_encoder: +[\d,]+ parameters", out)
    assert "3 per epoch, 2 in all" in out
    assert re.search(r"memory: +[\d.]+ GiB", out)
    assert re.search(r"time: +[\d.e-]+ s for a step, some [\d.]+ s for the run", out)
    assert "val_loss" in out
    assert out.endswith("dry run: 2 steps were made, nothing was written\n")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["shapes", "--resume"], "--resume: which run? name its folder with --output-dir"),
        (["shapes", "--resume", "--dry-run", "--output-dir", "x"], "--dry-run: makes a fresh step; leave out --resume"),
        (["shapes", "dataset.train_path=nowhere"], "nowhere does not exist; name an existing folder"),
        (["shapes", "optimization.lr=fast"], "optimization.lr: got 'fast' (text); it must be a number above 0"),
        ([], "impresa data export shapes data"),
    ],
)
def test_refusals_are_lines_with_exit_code_two(
    words: list[str], line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert line in err
    assert "Traceback" not in err
    assert list(folder.iterdir()) == []


def test_refusals_come_before_torch_is_imported(folder: Path) -> None:
    copy_of_run(folder / "run")
    code = """
import sys
from impresa.cli.main import main
codes = [main(["train", *words.split()]) for words in (
    "shapes optimization.lr=-1", "shapes dataset.train_path=nowhere", "shapes losses.pairs=[image-audio]",
    "shapes --output-dir run", "shapes --resume --output-dir run seed=5",
)]
print(codes, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[2, 2, 2, 2, 2] False"


def test_ctrl_c_ends_with_130_and_a_hint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from impresa.training.processes import GracefulStop

    def asked_at_once(self: GracefulStop) -> None:
        original(self)
        self.requested = True

    original = GracefulStop.__init__
    monkeypatch.setattr(GracefulStop, "__init__", asked_at_once)
    assert main([*SHORT, "--output-dir", "run"]) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert "`impresa train --output-dir run --resume` continues from the last checkpoint" in err
    assert {path.name for path in (folder / "run" / "checkpoints").iterdir()} == {"last.ckpt"}
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert main(["train", "--resume", "--output-dir", "run"]) == 0
    assert (folder / "run" / "manifest.json").exists()


def test_a_resumed_run_may_move_to_other_workers(folder: Path) -> None:
    copy_of_run(folder / "run")
    assert main(["train", "--resume", "--output-dir", "run", "dataset.num_workers=3"]) == 0
    assert read_config(folder / "run" / "config.yaml").dataset.num_workers == 0
