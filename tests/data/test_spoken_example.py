"""The spoken digits: which variants are one voice, that a voice has one side, and what is said without the program."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from examples_on_path import example
from impresa.config.dataset import DatasetConfig
from impresa.data.sources import Reading, open_path
from sounds_on_disk import wav

spoken = example("spoken")
LISTED = """Pty Language       Age/Gender VoiceName          File                 Other Languages
 5  variant         --/M      Mr_Serious         !v/Mr serious
 5  variant         --/F      Steph2             !v/steph2
 5  variant         --/M      Storm              !v/Storm             (en-us 5)
 5  variant         --/F      female2            !v/f2
"""
NAMES = ("Mr serious", "Storm", "f2", "steph2")


def test_variants_of_one_voice_stay_together() -> None:
    for variants in (
        ("steph", "steph2", "steph3"),
        ("anika", "anikaRobot"),
        ("Andy", "AnxiousAndy"),
        ("Gene", "Gene2"),
    ):
        assert len({spoken.voice_of(variant) for variant in variants}) == 1
    assert len({spoken.voice_of(variant) for variant in ("m1", "m2", "f2", "f3", "robosoft", "Mr serious")}) == 6


def test_sides_have_the_shares_that_are_promised() -> None:
    sides = [spoken.split_of(f"voice {number}") for number in range(4000)]
    assert [sides.count(side) / 4000 for side in ("train", "val", "test")] == pytest.approx([0.7, 0.12, 0.18], abs=0.02)


def test_without_the_program_the_script_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spoken.shutil, "which", lambda _: None)
    with pytest.raises(SystemExit, match=r"^espeak-ng is not installed: apt-get install espeak-ng"):
        spoken.variants()


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A program that hums, and the commands that it was given."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        if "-w" in command:
            commands.append(command)
            Path(command[command.index("-w") + 1]).write_bytes(wav(300, seconds=0.1))
        return SimpleNamespace(stdout=LISTED)

    monkeypatch.setattr(spoken.shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", run)
    return commands


@pytest.mark.usefixtures("program")
def test_installed_variants_are_listed_by_side() -> None:
    found = spoken.variants()
    assert sorted(variant for variants in found.values() for variant in variants) == sorted(NAMES)
    for split, variants in found.items():
        assert all(spoken.split_of(spoken.voice_of(variant)) == split for variant in variants)


def test_the_tables_have_image_sound_and_caption(
    program: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(spoken, "split_of", lambda voice: {"f2": "val", "storm": "test"}.get(voice, "train"))
    scanned = spoken.scanned
    monkeypatch.setattr(spoken, "scanned", lambda split: tuple(rows[:12] for rows in scanned(split)))
    spoken.write(tmp_path)
    source = open_path(DatasetConfig(), str(tmp_path / "test.parquet"), Reading(audio_seconds=1.0, labels=True))
    assert len(source) == 12
    sample = source[3]
    assert sample.image is not None
    assert sample.audio is not None
    assert sample.captions == (f"the digit {sample.label}", f"the number {sample.label}", sample.label)
    said = [command[-1] for command in program]
    assert len(said) == 36
    assert said.count(sample.label) >= 1
    assert {command[2].partition("+")[2] for command in program} <= set(NAMES)
