"""Options of the verbs that let a run answer, refusals before torch is imported, and the answering itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from impresa.cli.options import add_device, checked_device, count, count_or_zero, fraction, non_negative
from impresa.errors import CheckpointError, DataError
from impresa.foreign_text import json_text, printable

if TYPE_CHECKING:
    from impresa.config.decoder import GenerationConfig
    from impresa.tasks.answering.answer import Answer
    from impresa.tasks.answering.answerer import AnsweringModel

NO_ANSWER = "(no answer)"


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a run with a decoder")


def add_generation(parser: argparse.ArgumentParser, *, beams: bool = True) -> None:
    """Options that override `decoder.generation` of the run."""
    group = parser.add_argument_group("generation", "defaults are those of the run's config")
    group.add_argument("--max-new-tokens", type=count, metavar="N", help="longest answer in tokens")
    group.add_argument(
        "--temperature", type=non_negative, metavar="X", help="sampling temperature; 0 takes the likeliest token"
    )
    group.add_argument(
        "--top-p", type=fraction, metavar="X", help="sample from the likeliest tokens with this probability in sum"
    )
    group.add_argument("--top-k", type=count_or_zero, metavar="N", help="sample from the N likeliest tokens; 0: all")
    if beams:
        group.add_argument(
            "--beams", dest="num_beams", type=count, metavar="N", help="number of beams; 1: no beam search"
        )
    group.add_argument("--repetition-penalty", type=non_negative, metavar="X", help="above 1: less repetition")
    group.add_argument(
        "--no-repeat-ngram-size", type=count_or_zero, metavar="N", help="no n-gram of N tokens occurs twice"
    )
    group.add_argument("--stop", action="append", metavar="TEXT", help="text that ends the answer; repeatable")
    group.add_argument(
        "--seed", type=count_or_zero, metavar="N", help="seed of sampling (default: a new one each time)"
    )
    add_device(parser)


def add_subjects_and_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="image file; none for sounds alone")
    parser.add_argument("--together", action="store_true", help="ask once about all images, not about each by itself")
    what = "sound file, one for each image or without images; may be given several times"
    parser.add_argument("--sound", dest="sounds", action="append", default=[], type=Path, metavar="FILE", help=what)
    parser.add_argument("--batch-size", type=count, default=32, metavar="N", help="images at a time (default: 32)")
    parser.add_argument("--json", action="store_true", help="print a list of objects: image, question, answer, ...")


@dataclass(frozen=True)
class Asked:
    """Files that a question is about: images, a sound, or both."""

    images: Sequence[Path] = ()
    sound: Path | None = None

    @property
    def seen(self) -> Path | list[Path] | None:
        """The images as a model takes them."""
        return list(self.images) if len(self.images) > 1 else next(iter(self.images), None)


def asked_about(images: Sequence[Path], sounds: Sequence[Path], *, together: bool = False) -> list[Asked]:
    """The subjects of a question: each image or each sound, or with `together` all images at once."""
    if not (images or sounds):
        raise DataError("IMAGE: there is none, and no --sound; name what is asked about")
    seen = [images] if together and images else [[image] for image in images]
    if seen and sounds and len(seen) != len(sounds):
        of = "all images together" if together else f"{len(images)} images"
        raise DataError(f"--sound: {len(sounds)} sounds for {of}; give {'one' if together else 'as many of each'}")
    return [Asked(*pair) for pair in zip_longest(seen, sounds)] if seen else [Asked(sound=sound) for sound in sounds]


def check_inputs(args: argparse.Namespace, subjects: Sequence[Asked]) -> None:
    """Refuse runs without a decoder, impossible options, unreadable images, sounds that are missing or that the run
    cannot hear, and more images of one question than it reads, before torch is imported."""
    from impresa.config.runs import read_run

    config = read_run("RUN", str(args.run))
    if config.decoder is None:
        raise CheckpointError(f"{args.run}: is an alignment and answers nothing; train a run with a decoder on it")
    _check_generation(args, config.decoder.generation)
    for subject in subjects:
        if (number := len(subject.images)) > (most := config.dataset.max_images):
            fault = f"{number} images of one question, and {args.run} reads {most} (dataset.max_images)"
            raise DataError(f"IMAGE: {fault}; give fewer")
        if subject.sound is not None and config.audio_encoder is None:
            raise DataError(f"--sound: {args.run} has no audio encoder; leave it out")
    for subject in subjects:
        for image in subject.images:
            check_image(image)
        if subject.sound is not None:
            check_sound(subject.sound)


def load_model(args: argparse.Namespace) -> AnsweringModel:
    """The run's model, set to generate as the options say."""
    import torch

    from impresa.config.validate import generation_settings
    from impresa.run_dir.load import load_answerer

    model = load_answerer(args.run, checked_device(args.device))
    torch.seed()  # it starts every process from the same
    model.generation = generation_settings(_given(args), model.generation)
    return model


def answer(args: argparse.Namespace, question: str) -> None:
    """Print the answer to one question about each of the images or sounds, or about all images together."""
    subjects = asked_about(args.images, args.sounds, together=args.together)
    check_inputs(args, subjects)
    model = load_model(args)
    if not args.json and len(subjects) == 1 and sys.stdout.isatty() and model.generation.num_beams == 1:
        answers = [print_pieces(model.stream(subjects[0].seen, question, sound=subjects[0].sound))]
    else:
        images = [subject.seen for subject in subjects] if args.images else None
        sounds = [subject.sound for subject in subjects] if args.sounds else None
        answers = cast("list[Answer]", model.ask(images, question, sounds=sounds, batch_size=args.batch_size))
        _print_answers(args, question, list(zip(subjects, answers, strict=True)))
    if not args.json:  # which says it in its own way
        print(*(f"{line}\n" for line in remarks(answers, model)), sep="", end="", file=sys.stderr)


def _print_answers(args: argparse.Namespace, question: str, rows: Sequence[tuple[Asked, Answer]]) -> None:
    if args.json:
        print(json_text([_row(subject, question, answer) for subject, answer in rows]))
    elif len(rows) == 1:
        print(printable(rows[0][1], lines=True) or NO_ANSWER)
    else:
        for subject, answer in rows:
            name = printable(str(next(iter(subject.images), subject.sound)))
            print(f"{name}: {printable(' '.join(answer.split())) or NO_ANSWER}")


def _row(subject: Asked, question: str, answer: Answer) -> dict[str, Any]:
    images = [printable(str(image)) for image in subject.images]
    return {
        "image": images if len(images) > 1 else next(iter(images), None),
        **({} if subject.sound is None else {"sound": printable(str(subject.sound))}),
        "question": question,
        "answer": answer,
        "finish_reason": answer.finish_reason,
        "question_cut": answer.question_cut,
    }


def remarks(answers: Sequence[Answer], model: AnsweringModel) -> Iterator[str]:
    """Lines about what was cut."""
    if num_cut := sum(answer.finish_reason == "length" for answer in answers):
        which = "the answer was" if len(answers) == 1 else f"{num_cut} of {len(answers)} answers were"
        fault = f"{which} cut at {model.generation.max_new_tokens} tokens"
        yield f"--max-new-tokens: {fault}; give a larger number"
    room = f"decoder.max_len: {model.max_len} tokens hold"
    if any(answer.question_cut for answer in answers):
        yield f"{room} only the end of the question, and the answer; ask in fewer words"
    if num_forgotten := max((answer.num_forgotten for answer in answers), default=0):
        yield f"{room} no more than the end of the conversation; the oldest questions ({num_forgotten}) are forgotten"


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of generation that the options name."""
    from impresa.config.decoder import GenerationConfig

    names = (field.name for field in fields(GenerationConfig))
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def _check_generation(args: argparse.Namespace, defaults: GenerationConfig) -> None:
    from impresa.config.validate import generation_settings

    def option(key: str) -> str:
        return f"--{key.removeprefix('num_').replace('_', '-')}"

    generation = generation_settings(_given(args), defaults, option)
    if args.seed is not None and generation.temperature == 0:
        print("--seed: changes nothing at temperature 0, which draws nothing", file=sys.stderr)


def print_pieces(pieces: Generator[str, None, Answer], said: list[str] | None = None) -> Answer:
    """Print an answer as it comes and end its line, whatever ends it; the pieces are put into `said` too."""
    said = [] if said is None else said
    try:
        while True:
            said.append(next(pieces))
            print(printable(said[-1], lines=True), end="", flush=True)
    except StopIteration as end:
        answer: Answer = end.value
        print("" if answer else NO_ANSWER, flush=True)
        return answer
    except BaseException as error:
        if said or isinstance(error, KeyboardInterrupt):
            print(flush=True)
        raise


def check_image(path: Path) -> None:
    """Refuse what is no image, in one line."""
    from impresa.data.image_files import open_image

    try:
        with open_image(path):
            return
    except ValueError as error:
        raise DataError(f"{path}: {error}; give another image") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; give the path of an image file") from error


def check_sound(path: Path) -> None:
    """Refuse what is no file, in one line; it is decoded later, which needs torch."""
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "there is no such file"
        raise DataError(f"{path}: {fault}; give the path of a sound file")
