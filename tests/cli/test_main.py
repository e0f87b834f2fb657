"""The command itself: verbs, exit codes, what it imports, what it passes on."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from impresa import __version__
from impresa.cli import main as main_module
from impresa.cli.main import VERBS, main

REPOSITORY = Path(__file__).parents[2]


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = told(capsys, "--help")
    assert (code, err) == (0, "")
    assert all(f"\n  {name}" in out for name in VERBS)
    assert told(capsys, "-h") == (0, out, "")
    assert told(capsys) == (2, out, "")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_module_with_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = told(capsys, verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: impresa {verb}")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "--version") == (0, f"impresa {__version__}\n", "")


def test_an_unknown_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = told(capsys, "trian", "shapes")
    assert (code, out) == (2, "")
    assert err.startswith("trian: unknown verb; did you mean train? there are ")
    assert told(capsys, "zzz")[2].startswith("zzz: unknown verb; there are ")


@pytest.mark.parametrize(
    "argv",
    [
        ["config"],
        ["config", "shwo"],
        ["config", "show", "--jsno"],
        ["config", "show", "a", "b"],
        ["config", "list", "--raw"],
        ["config", "show", "shapes", "optimization.lr=-1"],
        ["config", "show", "nothing"],
        ["train", "shapes", "--optimization.lr"],
        ["train", "--no-such-option"],
    ],
)
def test_faults_of_the_user_end_with_2_and_no_traceback(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = told(capsys, *argv)
    assert (code, out) == (2, "")
    assert err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["train", "--lr", "1e-4"], "--lr: unknown argument; did you mean --optimization.lr? impresa train --help"),
        (["train", "--precison", "x"], "--precison: unknown argument; did you mean --optimization.precision? "),
        (["train", "--ouput-dir=x"], "--ouput-dir=x: unknown argument; did you mean --output-dir? "),
        (["config", "show", "--jsno"], "--jsno: unknown argument; did you mean --json? "),
        (["config", "list", "shapes"], "shapes: unknown argument; impresa config --help tells what there is"),
    ],
)
def test_an_unknown_argument_names_the_nearest(argv: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = told(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.startswith(line)


def test_ctrl_c_ends_with_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "_run", interrupted)
    assert told(capsys, "train") == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), "a/b: No such file or directory"),
        (PermissionError(errno.EACCES, "Permission denied", b"a"), "a: Permission denied"),
        (SafetensorError("Error while serializing: I/O error: No space (os error 39)"), "Directory not empty"),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB."), "memory ran out; smaller batches"),
        (MemoryError(), "memory ran out; smaller batches (--batch-size)"),
    ],
)
def test_faults_of_the_machine_end_with_2_and_no_traceback(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(words: list[str]) -> int:
        raise error

    monkeypatch.setattr(main_module, "_run", fails)
    code, out, err = told(capsys, "eval")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(line)


@pytest.mark.parametrize("error", [KeyError("ours"), RuntimeError("size mismatch"), OSError("without a number")])
def test_mistakes_of_ours_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(words: list[str]) -> int:
        raise error

    monkeypatch.setattr(main_module, "_run", fails)
    with pytest.raises(type(error)):
        main(["eval"])


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m impresa.cli.main config schema | head -c 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{", "")


WITHOUT_TORCH = """
import sys
from impresa.cli.main import main
codes = [main(command.split()) for command in sys.argv[1:]]
heavy = {"torch", "transformers", "lightning", "numpy", "PIL", "matplotlib"} & sys.modules.keys()
print(codes, heavy)
"""


def test_help_configs_and_their_refusals_import_nothing_heavy() -> None:
    commands = [
        "--help",
        *(f"{verb} --help" for verb in VERBS),
        "config list",
        "config show shapes",
        "config show trm_vlm_qa_3b_reg --json",
        "config schema",
        "config show shapes optimization.lr=0 vision_encoder.num_heads=5",
        "train nothing",
        "train shapes optimization.lr=0",
        "train shapes dataset.train_path=nowhere",
        "train trm_vlm_qa_3b_reg",
    ]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *commands], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    refused = sum(command.startswith(("train ", "config show shapes opt")) for command in commands) - 1
    assert done.stdout.splitlines()[-1] == f"{[0] * (len(commands) - refused) + [2] * refused} set()"


def test_train_py_is_the_verb_train() -> None:
    outputs = [
        subprocess.run([*command, "--config-name=nothing"], capture_output=True, text=True, check=False, cwd=REPOSITORY)
        for command in ([sys.executable, "train.py"], [sys.executable, "-m", "impresa.cli.main", "train"])
    ]
    assert outputs[0].stderr == outputs[1].stderr
    assert outputs[0].stderr.startswith("nothing: unknown config")
    assert outputs[0].returncode == outputs[1].returncode == 2
