"""A model that was taught no captions says so when it is asked for one."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from impresa.data.dialogue import Dialogue, dialogues_of_captions
from impresa.data.preprocessing import Preprocessing
from impresa.run_dir.load import load_answerer
from impresa.tasks import task_of
from impresa.tasks.answering.answerer import NO_CAPTIONS, AnsweringModel
from tiny_vlm import DIALOGUES, answering, finished_vlm, picture, tiny_vlm


def knowing(captions: bool | None) -> AnsweringModel:
    plain = answering(tiny_vlm())
    return AnsweringModel(plain.model, plain.config, replace(plain.preprocessing, captions=captions), "cpu")


def test_ask_caption_and_stream_warn_alike_and_once(caplog: pytest.LogCaptureFixture) -> None:
    model = knowing(False)
    model.ask(picture(1), "how many?")
    assert not caplog.records
    model.caption([picture(1), picture(2)])
    model.ask(picture(1), "Describe this picture.")
    assert caplog.messages == [NO_CAPTIONS]
    assert caplog.records[0].levelno == logging.WARNING
    list(knowing(False).stream(picture(1), "a caption, please"))
    assert caplog.messages == [NO_CAPTIONS] * 2


@pytest.mark.parametrize("known", [True, None])
def test_others_do_not(known: bool | None, caplog: pytest.LogCaptureFixture) -> None:
    knowing(known).caption(picture(1))
    assert not caplog.records


class Dialogues:
    """A source of dialogues alone."""

    def __init__(self, *dialogues: Dialogue) -> None:
        self._dialogues = dialogues

    def dialogues(self) -> tuple[Dialogue, ...]:
        return self._dialogues


def test_a_run_knows_what_it_was_taught(tmp_path: Path) -> None:
    run = finished_vlm()
    assert load_answerer(run, "cpu").preprocessing.captions is False
    plain = tuple(dialogue for said in DIALOGUES for dialogue in said)
    prepared = task_of(tiny_vlm()).prepare(Dialogues(*plain, *dialogues_of_captions(["two squares"])))  # type: ignore[arg-type]
    prepared.save(tmp_path)
    assert Preprocessing.load(tmp_path).captions is True
    config = tiny_vlm()
    assert config.decoder is not None
    for before, after in ((run, False), (tmp_path, True)):
        if before is tmp_path:
            (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
            (tmp_path / "manifest.json").write_text("{}")
        later = replace(config, decoder=replace(config.decoder, init_from=str(before)))
        assert task_of(later).prepare(Dialogues(*plain)).captions is after  # type: ignore[arg-type]


def test_a_run_of_an_older_version_knows_nothing(tmp_path: Path) -> None:
    prepared = task_of(tiny_vlm()).prepare(Dialogues(*DIALOGUES[0]))  # type: ignore[arg-type]
    prepared.save(tmp_path)
    stored = json.loads((tmp_path / "preprocessing.json").read_text())
    assert stored.pop("captions") is False
    (tmp_path / "preprocessing.json").write_text(json.dumps(stored))
    assert Preprocessing.load(tmp_path).captions is None
