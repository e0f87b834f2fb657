"""`impresa ask`, `caption` and `chat`: what is printed, what reaches the model, and refusals in one line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from impresa.cli.main import main
from impresa.config import to_yaml
from impresa.config.experiment import DecoderConfig, ExperimentConfig, GenerationConfig
from impresa.data.dialogue import CAPTION_PROMPTS, Turn
from impresa.errors import DataError
from impresa.tasks.answering.answerer import AnsweringModel

DEFAULTS = GenerationConfig(max_new_tokens=7, temperature=0.5, top_p=0.9, num_beams=1)


@dataclass
class Parrot:
    """Stands in for a model: says the picture's colour and the question."""

    generation: GenerationConfig = DEFAULTS
    calls: list[tuple[str, Any]] = field(default_factory=list)

    def ask(self, images: Sequence[Path], questions: str, *, batch_size: int) -> list[str]:
        self.calls.append(("ask", batch_size))
        return [f"{image.stem}\n{questions}" for image in images]

    def stream(self, image: Path, question: str, *, turns: Sequence[Turn] = ()) -> Iterator[str]:
        self.calls.append(("stream", tuple(turns)))
        if question == "too long":
            raise DataError("the frame leaves no room for a question")
        yield from ("" if question == "nothing" else f"{image.stem} ", question)


def test_the_stand_in_takes_what_a_model_takes() -> None:
    for name in ("ask", "stream"):
        real, ours = (signature(getattr(kind, name)).parameters for kind in (AnsweringModel, Parrot))
        assert list(ours)[:3] == list(real)[:3]
        assert all(parameter.kind == real[given].kind for given, parameter in ours.items())


class Terminal(io.StringIO):
    """Standard input or output that somebody sits at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def parrot(monkeypatch: pytest.MonkeyPatch) -> Parrot:
    model = Parrot()
    monkeypatch.setattr("impresa.run_dir.load.load_answerer", lambda run_dir, device=None: model)
    return model


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two images, a text, a finished run, one of an alignment, and one that is unfinished."""
    monkeypatch.chdir(tmp_path)
    for name in ("red", "blue"):
        Image.new("RGB", (8, 8), name).save(f"{name}.png")
    (tmp_path / "text.txt").write_text("no image")
    answering = ExperimentConfig(decoder=DecoderConfig(type="trm", generation=DEFAULTS))
    for name, config in (("run", answering), ("alignment", ExperimentConfig()), ("unfinished", answering)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(to_yaml(config))
        if name != "unfinished":
            (tmp_path / name / "manifest.json").write_text("{}")
    return tmp_path


def test_one_image_gets_the_answer_alone(place: Path, parrot: Parrot, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "run", "red.png", "what?"]) == 0
    assert capsys.readouterr().out == "red\nwhat?\n"
    assert parrot.calls == [("ask", 32)]


@pytest.mark.parametrize(
    "words",
    [
        ["run", "red.png", "blue.png", "what?", "--batch-size", "3"],
        ["--batch-size=3", "run", "red.png", "blue.png", "what?"],
        ["run", "--batch-size", "3", "red.png", "blue.png", "what?"],
        ["run", "red.png", "blue.png", "--batch-size", "3", "what?"],
    ],
)
def test_several_images_get_a_line_each(
    place: Path, parrot: Parrot, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(["ask", *words]) == 0
    assert capsys.readouterr().out == "red.png: red what?\nblue.png: blue what?\n"
    assert parrot.calls == [("ask", 3)]


@pytest.mark.parametrize("images", [["red.png"], ["red.png", "blue.png"]])
def test_json_is_a_list_of_objects(
    place: Path, parrot: Parrot, capsys: pytest.CaptureFixture[str], images: list[str]
) -> None:
    assert main(["ask", "run", *images, "où?", "--json"]) == 0
    told = capsys.readouterr().out
    assert json.loads(told) == [
        {"image": image, "question": "où?", "answer": f"{Path(image).stem}\noù?"} for image in images
    ]
    assert "où" in told


def test_a_caption_is_the_answer_to_the_first_prompt(
    place: Path, parrot: Parrot, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", "run", "red.png", "--beams", "2"]) == 0
    assert capsys.readouterr().out == f"red\n{CAPTION_PROMPTS[0]}\n"
    assert parrot.generation.num_beams == 2


@pytest.mark.parametrize(
    ("words", "streams"),
    [([], True), (["--beams", "2"], False), (["--json"], False), (["blue.png"], False)],
)
def test_a_terminal_sees_one_answer_as_it_comes(
    place: Path, parrot: Parrot, monkeypatch: pytest.MonkeyPatch, words: list[str], streams: bool
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    assert main(["ask", "run", "red.png", *words, "what?"]) == 0
    assert [name for name, _ in parrot.calls] == ["stream" if streams else "ask"]
    if streams:
        assert screen.getvalue() == "red what?\n"


def test_options_stand_in_for_the_runs_defaults(place: Path, parrot: Parrot) -> None:
    assert main(["ask", "run", "red.png", "what?"]) == 0
    assert parrot.generation == DEFAULTS
    words = ["--max-new-tokens", "3", "--temperature", "0.2", "--top-p", "0.25", "--beams", "4"]
    assert main(["ask", "run", "red.png", "what?", *words]) == 0
    assert parrot.generation == GenerationConfig(max_new_tokens=3, temperature=0.2, top_p=0.25, num_beams=4)


@pytest.mark.parametrize("verb", ["ask", "caption", "chat"])
def test_options_that_do_nothing_or_cannot_be(
    place: Path, parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("what?\n"))
    words = [verb, "run", "red.png", *(["what?"] if verb == "ask" else [])]
    assert main([*words, "--temperature", "0", "--top-p", "0.5"]) == 2
    assert capsys.readouterr().err == "--top-p: 0.5 does nothing at temperature 0, which draws nothing; leave it out\n"
    assert main([*words, "--temperature", "1e-45"]) == 2
    assert capsys.readouterr().err == (
        "--temperature: 1e-45 is too small to divide by; 0 takes the likeliest token, anything else is at least 0.001\n"
    )
    assert parrot.calls == []
    # The run's own top-p means nothing now, but nobody has asked for it.
    assert main([*words, "--temperature", "0", "--seed", "3"]) == 0
    assert capsys.readouterr().err == "--seed: changes nothing at temperature 0, which draws nothing\n"


def test_a_seed_repeats_what_is_drawn_and_none_does_not(place: Path, parrot: Parrot) -> None:
    drawn = []
    for words in (["--seed", "3"], ["--seed", "3"], ["--seed", "4"], [], []):
        assert main(["ask", "run", "red.png", "what?", *words]) == 0
        drawn.append(torch.rand(()).item())
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 4


def test_the_device_reaches_the_model(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def load(run_dir: Path, device: object = None) -> Parrot:
        asked.append((run_dir, device))
        return Parrot()

    monkeypatch.setattr("impresa.run_dir.load.load_answerer", load)
    assert main(["ask", "run", "red.png", "what?", "--device", "cpu"]) == 0
    assert asked == [(Path("run"), "cpu")]


def test_a_chat_remembers_until_it_is_told_to_forget(
    place: Path, parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("what?\n where? \n/new\nwho?\nnothing\nwhy?\n\nunheard\n"))
    assert main(["chat", "run", "red.png"]) == 0
    assert capsys.readouterr().out == "red what?\nred where?\nred who?\nnothing\nred why?\n"
    what, where, who = Turn("what?", "red what?"), Turn("where?", "red where?"), Turn("who?", "red who?")
    assert [turns for _, turns in parrot.calls] == [(), (what,), (), (who,), (who, Turn("nothing", "nothing"))]
    assert where not in parrot.calls[2][1]


def test_a_chat_ends_with_its_input_and_uses_no_beams(
    place: Path, parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parrot.generation = GenerationConfig(num_beams=3)
    monkeypatch.setattr(sys, "stdin", io.StringIO("what?"))
    assert main(["chat", "run", "red.png", "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().out == "red what?\n"
    assert parrot.generation == GenerationConfig(max_new_tokens=2, num_beams=1)


def test_text_that_is_no_utf_8_is_refused(
    place: Path, parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", "run", "red.png", "how \udcff many?"]) == 2
    assert capsys.readouterr().err == "QUESTION: is not UTF-8 text; write it in that encoding\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"what?\nhow \xff many?\n"), encoding="utf-8"))
    assert main(["chat", "run", "red.png"]) == 2
    told = capsys.readouterr()
    assert told.err == "standard input: is not UTF-8 text; write it in that encoding\n"


def test_images_of_any_name_are_told(place: Path, parrot: Parrot, capsysbinary: Any) -> None:
    Path("\udcff.png").write_bytes(Path("red.png").read_bytes())
    parrot.ask = lambda images, *_, **__: ["hi"] * len(images)  # type: ignore[method-assign]
    for words in ([], ["--json"]):
        assert main(["ask", "run", "red.png", "\udcff.png", "what?", *words]) == 0
        assert b"?.png" in capsysbinary.readouterr().out


def test_a_question_may_be_longer_than_a_file_name(
    place: Path, parrot: Parrot, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", "run", "red.png", "why? " * 1000]) == 0
    assert capsys.readouterr().out.startswith("red\nwhy?")


def test_who_types_is_prompted_and_may_go_on_after_a_fault(
    place: Path, parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("too long\nwhat?\n"))
    assert main(["chat", "run", "red.png"]) == 0
    told = capsys.readouterr()
    assert told.out == "> > red what?\n> \n"
    assert told.err == "the frame leaves no room for a question\n"


def test_a_fault_ends_a_chat_that_nobody_types(
    place: Path, parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("too long\nwhat?\n"))
    assert main(["chat", "run", "red.png"]) == 2
    assert capsys.readouterr() == ("", "the frame leaves no room for a question\n")


REFUSED = {
    "ask run missing.png what?": "missing.png: No such file or directory; give the path of an image file",
    "ask run red.png text.txt what?": "text.txt: not an image of a known format (JPEG, PNG, ",
    "ask run . what?": ".: Is a directory; give the path of an image file",
    "ask alignment red.png what?": "alignment: is an alignment and answers nothing; train a run with a decoder on it",
    "ask nowhere red.png what?": "RUN: nowhere does not exist; name the directory that `impresa train` printed last",
    "ask . red.png what?": "RUN: . holds runs and is none itself; name one, such as ",
    "ask unfinished red.png what?": "RUN: unfinished has not finished; `impresa train --output-dir unf",
    "ask run red.png blue.png": "blue.png: is a file where the question should be; put the question last, in quotes",
    "ask run red.png": "impresa ask: the following arguments are required: QUESTION; impresa ask --help tells",
    "ask run red.png _": "QUESTION: is empty; ask something",
    "ask run red.png what? --temperature -1": "impresa ask: argument --temperature: -1 is not a number from 0; ",
    "ask run red.png what? --temperature inf": "impresa ask: argument --temperature: inf is not a number from 0; ",
    "ask run red.png what? --beams 0": "impresa ask: argument --beams: 0 is not a whole number from 1; ",
    "ask run red.png what? --top-p 1.5": "impresa ask: argument --top-p: 1.5 is not a number from 0 to 1; ",
    "ask run red.png what? --max-new-tokens few": "impresa ask: argument --max-new-tokens: few is not a whole number",
    "ask run red.png what? --batch-size 0": "impresa ask: argument --batch-size: 0 is not a whole number from 1; ",
    "ask run red.png what? --sed 1": "--sed: unknown argument; did you mean --seed? impresa ask --help tells",
    "caption alignment red.png": "alignment: is an alignment and answers nothing; ",
    "caption run missing.png": "missing.png: No such file or directory; ",
    "chat run text.txt": "text.txt: not an image of a known format (",
    "chat alignment red.png": "alignment: is an alignment and answers nothing; ",
    "chat run red.png --beams 2": "--beams: unknown argument; ",
}


@pytest.mark.parametrize("command", REFUSED)
def test_refusals_are_one_line(place: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([" " if word == "_" else word for word in command.split()]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(REFUSED[command])
    assert told.err.count("\n") == 1


def test_a_device_that_is_not_there_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "run", "red.png", "what?", "--device", "toaster"]) == 2
    assert capsys.readouterr().err.startswith("--device: toaster cannot be used here")


def test_refusals_need_no_torch(place: Path) -> None:
    code = (
        "import sys; from impresa.cli.main import main;"
        "print([main(command.split()) for command in sys.argv[1:]], 'torch' in sys.modules)"
    )
    commands = [command for command in REFUSED if "_" not in command]
    done = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True, check=True)
    assert done.stdout == f"{[2] * len(commands)} False\n"
