"""Whatever data, runs and models hold, a terminal shows it and is not steered by it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from impresa.cli.main import main
from impresa.training.processes import _StderrHandler
from pictures import write_jsonl
from tiny_run import copy_of_run

EVIL = "\x1b[2J\x9b31m\u202e\nforged"
SHOWN = r"\u001b[2J\u009b31m\u202e\u000aforged"


def steers(text: str) -> bool:
    return bool({"\x1b", "\x9b", "\u202e"} & set(text)) or any(line.startswith("forged") for line in text.splitlines())


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_labels_and_reasons_of_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    rows = [{"image": f"{i}.png", "caption": "a", "label": f"{EVIL} {i}"} for i in range(2)]
    write_jsonl(tmp_path, [*rows, {"image": f"{EVIL}.png", "caption": "b"}])
    assert main(["data", "check", str(tmp_path), "--max-bad-fraction", "1", *options]) == 0
    out, err = capsys.readouterr()
    assert not steers(out + err)
    assert f"{SHOWN} 0" in out if not options else f"{EVIL} 0" in json.loads(out)["labels"]


def test_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["train", EVIL], ["eval", EVIL], ["train", "shapes", f"dataset.train_path={EVIL}"], [EVIL]):
        assert main(words) == 2
        assert not steers("".join(capsys.readouterr()))


def test_a_config_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "evil.yaml"
    file.write_text(f"name: {json.dumps(EVIL)}\nlabels: {{description: {json.dumps(EVIL)}}}\n")
    for options in ((), ("--json",)):
        main(["config", "show", str(file), *options])
        assert not steers("".join(capsys.readouterr()))


def test_a_run_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = copy_of_run(tmp_path / "run")
    (run_dir / "manifest.json").write_text(json.dumps({"format": EVIL, "sha256": {}}))
    assert main(["eval", str(run_dir)]) == 2
    assert not steers("".join(capsys.readouterr()))


def test_log_lines(capsys: pytest.CaptureFixture[str]) -> None:
    _StderrHandler().handle(logging.makeLogRecord({"msg": f"{EVIL}: said"}))
    assert capsys.readouterr().err == f"{SHOWN}: said\n"
