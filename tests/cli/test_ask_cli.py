"""`impresa ask`, `caption` and `chat`: what is printed, what reaches the model, and refusals in one line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from impresa.cli.main import main
from impresa.config import to_yaml
from impresa.config.decoder import DecoderConfig, GenerationConfig
from impresa.config.experiment import ExperimentConfig
from impresa.data.chat import Prompt
from impresa.data.dialogue import CAPTION_PROMPTS, Turn
from impresa.data.image_files import FORMATS
from impresa.errors import DataError
from impresa.tasks.answering.answer import Answer
from impresa.tasks.answering.answerer import AnsweringModel

DEFAULTS = GenerationConfig(max_new_tokens=7, temperature=0.5, top_p=0.9, num_beams=1)


@dataclass
class Parrot:
    """Stands in for a model: says the picture's colour and the question."""

    generation: GenerationConfig = DEFAULTS
    calls: list[tuple[str, Any]] = field(default_factory=list)
    max_len: int = 48

    def answer(self, text: str, question: str, num_forgotten: int = 0) -> Answer:
        prompt = Prompt([], num_cut=3 if "is cut" in question else 0, num_forgotten=num_forgotten)
        return Answer(text, "length" if "too much" in question else "stop", prompt)

    def ask(
        self, images: Sequence[Path], questions: str, *, sounds: Sequence[Path] | None, batch_size: int
    ) -> list[Answer]:
        assert sounds is None
        self.calls.append(("ask", batch_size))
        texts = ["" if questions == "nothing" else f"{image.stem}\n{questions}" for image in images]
        return [self.answer(text, questions) for text in texts]

    def stream(
        self, image: Path, question: str, *, turns: Sequence[Turn] = (), sound: Path | None
    ) -> Generator[str, None, Answer]:
        assert sound is None
        self.calls.append(("stream", tuple(turns)))
        if question == "too long":
            raise DataError("the frame leaves no room for a question")
        pieces = () if question == "nothing" else (f"{image.stem} ", question)
        for piece in pieces:
            yield piece
            if "wait" in question:
                raise KeyboardInterrupt
        return self.answer("".join(pieces), question, max(len(turns) - 2, 0))


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
        {
            "image": image,
            "question": "où?",
            "answer": f"{Path(image).stem}\noù?",
            "finish_reason": "stop",
            "question_cut": False,
        }
        for image in images
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
    words = ["--max-new-tokens", "3", "--temperature", "0.2", "--top-p", "0.25", "--beams", "4", "--top-k", "5"]
    words += ["--repetition-penalty", "2", "--no-repeat-ngram-size", "3", "--stop", ".", "--stop", "\n", "--seed", "9"]
    assert main(["ask", "run", "red.png", "what?", *words]) == 0
    chosen = {"max_new_tokens": 3, "temperature": 0.2, "top_p": 0.25, "num_beams": 4, "top_k": 5, "seed": 9}
    chosen |= {"repetition_penalty": 2.0, "no_repeat_ngram_size": 3, "stop": (".", "\n")}
    assert chosen.keys() == vars(GenerationConfig()).keys()
    assert parrot.generation == GenerationConfig(**chosen)


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


def test_without_a_seed_something_else_is_drawn_each_time(place: Path, parrot: Parrot) -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        assert main(["ask", "run", "red.png", "what?"]) == 0
        drawn.append(torch.rand(()).item())
    assert drawn[0] != drawn[1]
    assert parrot.generation.seed is None


def test_what_was_cut_and_what_is_missing_is_said(
    place: Path, parrot: Parrot, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", "run", "red.png", "nothing"]) == 0
    assert capsys.readouterr() == ("(no answer)\n", "")
    assert main(["ask", "run", "red.png", "blue.png", "nothing"]) == 0
    assert capsys.readouterr().out == "red.png: (no answer)\nblue.png: (no answer)\n"
    limit = "cut at 7 tokens; give a larger number\n"
    assert main(["ask", "run", "red.png", "too much"]) == 0
    assert capsys.readouterr() == ("red\ntoo much\n", f"--max-new-tokens: the answer was {limit}")
    assert main(["ask", "run", "red.png", "blue.png", "too much"]) == 0
    assert capsys.readouterr().err == f"--max-new-tokens: 2 of 2 answers were {limit}"
    assert main(["ask", "run", "red.png", "blue.png", "this is cut"]) == 0
    assert capsys.readouterr().err == (
        "decoder.max_len: 48 tokens hold only the end of the question, and the answer; ask in fewer words\n"
    )
    assert main(["ask", "run", "red.png", "this is cut and too much", "--json"]) == 0
    told = capsys.readouterr()
    (row,) = json.loads(told.out)
    assert (row["finish_reason"], row["question_cut"], told.err) == ("length", True, "")
    assert main(["ask", "run", "red.png", "nothing", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["answer"] == ""


def test_a_terminal_is_told_what_was_cut(
    place: Path, parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    for question in ("nothing", "too much"):
        assert main(["ask", "run", "red.png", question]) == 0
    assert screen.getvalue() == "(no answer)\nred too much\n"
    assert capsys.readouterr().err == "--max-new-tokens: the answer was cut at 7 tokens; give a larger number\n"


def test_an_interrupted_answer_ends_its_line(
    place: Path, parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    assert main(["ask", "run", "red.png", "wait"]) == 130
    assert (screen.getvalue(), capsys.readouterr().err) == ("red \n", "interrupted\n")


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
    assert capsys.readouterr().out == "red what?\nred where?\nred who?\n(no answer)\nred why?\n"
    what, where, who = Turn("what?", "red what?"), Turn("where?", "red where?"), Turn("who?", "red who?")
    assert [turns for _, turns in parrot.calls] == [(), (what,), (), (who,), (who,)]
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
    parrot.ask = lambda images, *_, **__: [Answer("hi")] * len(images)  # type: ignore[method-assign]
    for words in ([], ["--json"]):
        assert main(["ask", "run", "red.png", "\udcff.png", "what?", *words]) == 0
        assert rb"\udcff.png" in capsysbinary.readouterr().out


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


def chatted(lines: str, monkeypatch: pytest.MonkeyPatch, *, typed: bool = False) -> int:
    monkeypatch.setattr(sys, "stdin", (Terminal if typed else io.StringIO)(lines))
    return main(["chat", "run", "red.png"])


def test_a_question_goes_on_after_a_backslash(
    place: Path, parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chatted("what \\\n is \\\nthere?\nwho\\", monkeypatch) == 0
    assert capsys.readouterr().out == "red what\nis\nthere?\nred who\n"
    assert chatted("what\\\nis?\n", monkeypatch, typed=True) == 0
    assert capsys.readouterr().out == "> ... red what\nis?\n> \n"


def test_another_image_begins_another_conversation(
    place: Path, parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my picture.png").write_bytes(Path("blue.png").read_bytes())
    monkeypatch.setenv("HOME", str(place))
    lines = "what?\n/image blue.png\nwhat?\n/image 'my picture.png'\nwhat?\n/IMAGE ~/red.png\nwhat?\n/quit\nunheard\n"
    assert chatted(lines, monkeypatch) == 0
    assert capsys.readouterr().out == "red what?\nblue what?\nmy picture what?\nred what?\n"
    assert [turns for _, turns in parrot.calls] == [()] * 4


COMMANDS = {
    "/imge blue.png": "/imge: unknown command; did you mean /image? there are /new, /image, /sound, /help and /quit",
    "/": "/: unknown command; there are /new, /image, /sound, /help and /quit",
    "/image": "/image: names no file; write the path of one behind it",
    "/image nowhere.png": "nowhere.png: No such file or directory; give the path of an image file",
    "/image text.txt": f"text.txt: not an image of a known format ({', '.join(FORMATS)}); give another image",
    "/new please": "/new: takes nothing, not 'please'; write it alone",
}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_that_cannot_be_is_named_and_not_asked(
    place: Path, parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    assert chatted(f"what?\n{line}\nwhere?\n", monkeypatch, typed=True) == 0
    told = capsys.readouterr()
    assert told.err == f"{COMMANDS[line]}\n"
    assert told.out.count("red") == 2
    assert parrot.calls[1][1] == (Turn("what?", "red what?"),)  # the conversation goes on
    assert chatted(f"{line}\nwhere?\n", monkeypatch) == 2
    assert capsys.readouterr() == ("", f"{COMMANDS[line]}\n")


def test_help_names_every_command_and_a_path_is_no_command(
    place: Path, parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chatted("/help\n/a/b what is it?\n", monkeypatch) == 0
    *helped, answer = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in helped] == ["/new", "/image", "/sound", "/help", "/quit"]
    assert answer == "red /a/b what is it?"


def test_a_chat_says_what_was_cut_and_what_it_has_forgotten(
    place: Path, parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chatted("a\nb is cut\nc too much\nd\ne\n", monkeypatch) == 0
    room = "decoder.max_len: 48 tokens hold"
    forgotten = f"{room} no more than the end of the conversation; the oldest questions (1) are forgotten"
    assert capsys.readouterr().err.splitlines() == [
        f"{room} only the end of the question, and the answer; ask in fewer words",
        "--max-new-tokens: the answer was cut at 7 tokens; give a larger number",
        *[forgotten] * 2,  # one each time, and once
    ]
    assert [turn.question for turn in parrot.calls[-1][1]] == ["b is cut", "c too much", "d"]


def test_an_interrupted_answer_keeps_the_conversation_of_who_types(
    place: Path, parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chatted("what?\nwait\nwhere?\n", monkeypatch, typed=True) == 0
    told = capsys.readouterr()
    assert told.out == "> red what?\n> red \n> red where?\n> \n"
    assert told.err == "interrupted; /quit or ctrl-d ends\n"
    assert parrot.calls[-1][1] == (Turn("what?", "red what?"), Turn("wait", "red"))
    assert chatted("wait\nwhat?\n", monkeypatch) == 130
    assert capsys.readouterr() == ("red \n", "interrupted\n")


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
    "ask run red.png": "red.png: is a file where the question should be; put the question last, in quotes",
    "ask run what?": "IMAGE: there is none, and no --sound; name what is asked about",
    "ask run": "impresa ask: the following arguments are required: QUESTION; impresa ask --help tells",
    "ask run red.png blue.png what? --together": "IMAGE: 2 images of one question, and run reads 1 (",
    "chat run red.png blue.png": "IMAGE: 2 images of one question, and run reads 1 (dataset.max_images); give fewer",
    "ask run red.png what? --sound text.txt": "--sound: run has no audio encoder; leave it out",
    "ask run red.png blue.png what? --sound text.txt": "--sound: 1 sounds for 2 images; give as many of each",
    "chat run": "IMAGE: there is none, and no --sound; name what is asked about",
    "caption run": "IMAGE: there is none, and no --sound; name what is asked about",
    "ask run red.png _": "QUESTION: is empty; ask something",
    "ask run red.png what? --temperature -1": "impresa ask: argument --temperature: -1 is not a number from 0; ",
    "ask run red.png what? --temperature inf": "impresa ask: argument --temperature: inf is not a number from 0; ",
    "ask run red.png what? --beams 0": "impresa ask: argument --beams: 0 is not a whole number from 1; ",
    "ask run red.png what? --top-p 1.5": "impresa ask: argument --top-p: 1.5 is not a number from 0 to 1; ",
    "ask run red.png what? --max-new-tokens few": "impresa ask: argument --max-new-tokens: few is not a whole number",
    "ask run red.png what? --batch-size 0": "impresa ask: argument --batch-size: 0 is not a whole number from 1; ",
    "ask run red.png what? --top-k 0.5": "impresa ask: argument --top-k: 0.5 is not a whole number from 0; ",
    "ask run red.png what? --repetition-penalty 0": "--repetition-penalty: got 0.0; it must be a number at least 0.01 ",
    "ask run red.png what? --stop=": "--stop: got ['']; it must be text that is not empty or a list, each item text ",
    "ask run red.png what? --temperature 0 --top-k 3": "--top-k: 3 does nothing at temperature 0, which draws ",
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
