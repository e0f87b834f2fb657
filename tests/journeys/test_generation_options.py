"""`impresa ask`, `caption` and `chat` on a real model: what the options say is what it generates with."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from impresa.cli.main import main
from impresa.data.dialogue import CAPTION_PROMPTS, Turn
from impresa.foreign_text import printable
from impresa.run_dir.load import load_answerer
from impresa.run_dir.save import save_run
from tiny_vlm import answering, picture, samples, tiny_vlm

QUESTION = "what is there?"
SEEDED = ("--seed", "3", "--device", "cpu")
OPTIONS: dict[str, dict[str, Any]] = {
    "--max-new-tokens 2": {"max_new_tokens": 2},
    "--repetition-penalty 3": {"repetition_penalty": 3.0},
    "--no-repeat-ngram-size 1": {"no_repeat_ngram_size": 1},
    "--stop o --stop e": {"stop": ["o", "e"]},
    "--temperature 2 --top-k 3": {"temperature": 2.0, "top_k": 3},
    "--temperature 2": {"temperature": 2.0},
    "--temperature 2 --top-p 0.4": {"temperature": 2.0, "top_p": 0.4},
    "--beams 3": {"num_beams": 3},
}
"""Words of the command line, and the settings of generation that they stand for."""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose answers depend on the image, with images beside it."""
    folder = tmp_path_factory.mktemp("place") / "run"
    for number in range(6):
        picture(number).save(folder.parent / f"{number}.png")
    torch.manual_seed(0)  # the fixture of the whole suite comes after this one
    model = answering(tiny_vlm("decoder.generation.max_new_tokens=12"))
    save_run(folder, model.model, model.config, model.preprocessing, examples=samples())
    return folder


def images_beside(run_dir: Path) -> list[str]:
    return [str(path) for path in sorted(run_dir.parent.glob("*.png"))]


def expected(run_dir: Path, question: str, options: str) -> list[str]:
    """What Python's way to set the same options gives, under the seed 3."""
    model = load_answerer(run_dir, "cpu")
    answers = model.ask(images_beside(run_dir), question, generation=OPTIONS.get(options, {}) | {"seed": 3})
    assert isinstance(answers, list)
    return answers


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("verb", "question"), [("ask", QUESTION), ("caption", CAPTION_PROMPTS[0])])
def test_the_options_choose_the_answers(
    verb: str, question: str, options: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [question] if verb == "ask" else []
    words = [verb, str(run_dir), *images_beside(run_dir), *asked, *SEEDED, *options.split(), "--json"]
    assert main(words) == 0
    told = [row["answer"] for row in json.loads(capsys.readouterr().out)]
    assert told == expected(run_dir, question, options)
    assert told != expected(run_dir, question, options.rpartition(" --")[0])  # the last option counts
    assert len(set(told)) > 2


@pytest.mark.parametrize("options", [words for words in OPTIONS if "beams" not in words and "stop" not in words])
def test_the_options_choose_what_a_chat_says(
    options: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = images_beside(run_dir)[0]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\nand where?\n"))
    assert main(["chat", str(run_dir), image, *SEEDED, *options.split()]) == 0
    told = capsys.readouterr().out
    model = load_answerer(run_dir, "cpu")
    generation = OPTIONS[options] | {"seed": 3}
    first = "".join(model.stream(image, QUESTION, generation=generation))
    second = model.stream(image, "and where?", turns=[Turn(QUESTION, first.strip())], generation=generation)
    assert told == printable(f"{first}\n{''.join(second)}\n", lines=True)
    assert not told.startswith(printable(f"{model.ask(image, QUESTION)}\n", lines=True))
