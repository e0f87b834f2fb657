"""The commands and keys of docs/vlm.md exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from impresa.cli.main import main
from impresa.cli.overrides import split_overrides
from impresa.config import load_experiment
from impresa.config.decoder import GenerationConfig
from impresa.config.experiment import ExperimentConfig
from impresa.config.tree import known_keys
from pictures import png

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/vlm.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", GUIDE, flags=re.DOTALL)
    for line in block.splitlines()
    if line
]


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[1] == "train"], ids=" ".join)
def test_trainings_have_a_config(words: list[str]) -> None:
    _, overrides = split_overrides(words[3:], {"--output-dir"})
    assert load_experiment(words[2], overrides).name


def own_photos(folder: Path) -> None:
    """A photo with the row that the guide shows."""
    (row,) = re.findall(r"```json\n(.*)\n```", GUIDE)
    (folder / "my_photos").mkdir()
    (folder / "my_photos/1.jpg").write_bytes(png(1))
    (folder / "my_photos/metadata.jsonl").write_text(row)


@pytest.mark.parametrize(
    "words", [words for words in COMMANDS if words[0] == "impresa" and words[1] != "train"], ids=" ".join
)
def test_other_commands_are_understood(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if words[1:3] == ["data", "check"]:
        own_photos(tmp_path)
    if words[1:3] == ["data", "export"]:
        words = [*words, "--num-train", "1", "--num-val", "1", "--num-test", "1"]
    code = main(words[1:])
    # There is no such run here; anything before that is a fault of the guide's.
    assert code == 0 or capsys.readouterr().err.startswith(("RUN: ", "runs/answers: no such folder"))


def test_scripts_exist() -> None:
    scripts = [words[1] for words in COMMANDS if words[0] == "python"]
    assert scripts
    assert all((ROOT / script).is_file() for script in scripts)


def test_keys_exist() -> None:
    keys = set(re.findall(r"`((?:dataset|vision_encoder|audio_encoder|decoder|fusion|optimization)\.[\w.]+)`", GUIDE))
    known = list(known_keys(ExperimentConfig))
    assert len(keys) > 20
    assert [key for key in keys if key not in known and not any(other.startswith(f"{key}.") for other in known)] == []


def test_generation_defaults_are_those_of_the_config() -> None:
    rows = re.findall(r"^\| `decoder\.generation\.(\w+)` \| `[\w-]+` \| (\S+) \|", GUIDE, flags=re.MULTILINE)
    assert {name: None if value == "none" else float(value) for name, value in rows} == {
        name: None if value in ((), None) else float(value) for name, value in vars(GenerationConfig()).items()
    }
