"""Evaluation of a vision-language model: each question of a source is asked, and asked again about another image."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain, islice

import numpy as np
import torch

from impresa.data.dialogue import Dialogue
from impresa.data.sample import Sample
from impresa.data.sampler import shuffled_order
from impresa.data.sources import Source
from impresa.decoders.base import IGNORED
from impresa.evaluation.results import (
    AnsweredQuestion,
    AnswerMetrics,
    AnswerScores,
    BadSampleNote,
    Evaluation,
    Gallery,
)
from impresa.evaluation.text_scores import bleu, exact_match, rouge_l, score
from impresa.fusion import Prefix
from impresa.tasks.answering.answerer import AnsweringModel
from impresa.tasks.answering.batch import DialogueBatch, DialogueCollator
from impresa.tasks.gallery import data_uri, spread
from impresa.tasks.samples import nothing_usable, progress_bar, read_samples

NUM_EXAMPLES = 12
Guess = Callable[[str, str | None], str]


@dataclass
class _Question:
    """A question about an image, and the answers to it."""

    question: str
    expected: str
    kind: str | None
    position: int
    """Index of its sample in the source."""
    answer: str = ""
    shuffled: str | None = None
    """The answer about another image; None if its batch has no other."""


@dataclass
class _Asked:
    """All questions of a source, and the loss of the right answers."""

    questions: list[_Question] = field(default_factory=list)
    loss_sum: float = 0.0
    num_tokens: int = 0
    num_images: int = 0
    bad: list[BadSampleNote] = field(default_factory=list)


def evaluate_answers(
    model: AnsweringModel,
    source: Source,
    *,
    data: str,
    train_source: Source | None = None,
    batch_size: int | None = None,
    show_progress: bool = False,
) -> Evaluation:
    """Generated answers against the right ones, beside answers to other images and the most frequent answers.

    Every turn of every dialogue is asked, with the right answers to the turns before it. Images are exchanged within
    batches of a random but fixed order, for ones that are not equal. Bad samples are skipped and listed. The most
    frequent answers are those of `train_source`. Arguments are those of `Task.evaluate`; sources have dialogues.

    Raises:
        DataError: no sample is usable.
    """
    config = model.config.dataset
    asked = _ask_all(model, source, batch_size or config.eval_batch_size or config.batch_size, show_progress)
    questions = asked.questions
    if not questions:
        raise nothing_usable(data, asked.bad, "impresa data check PATH --questions")
    guess = None if train_source is None else _most_frequent(train_source.dialogues())
    kinds: dict[str, list[_Question]] = defaultdict(list)
    for question in questions:
        if question.kind is not None:
            kinds[question.kind].append(question)
    scores = _scores(questions, guess)
    answers, expected = [q.answer for q in questions], [q.expected for q in questions]
    loss = asked.loss_sum / asked.num_tokens
    return Evaluation(
        data=data,
        num_images=asked.num_images,
        num_texts=len(questions),
        num_distinct_texts=len({q.question for q in questions}),
        bad_samples=tuple(asked.bad),
        answers=AnswerMetrics(
            model=scores["model"],
            shuffled=scores["shuffled"],
            blind=scores.get("blind"),
            bleu=bleu(answers, expected),
            rouge_l=rouge_l(answers, expected),
            loss=loss,
            perplexity=math.exp(min(loss, 700.0)),
            kinds={kind: _scores(of_kind, guess) for kind, of_kind in sorted(kinds.items())},
        ),
        gallery=Gallery(questions=tuple(_examples(source, questions))),
    )


def _ask_all(model: AnsweringModel, source: Source, batch_size: int, show_progress: bool) -> _Asked:
    asked = _Asked()
    collate = DialogueCollator(model.preprocessing, model.max_len)
    order = shuffled_order(len(source), source.blocks(), np.random.default_rng(0)).tolist()
    positions: dict[str, int] = {}

    def read() -> Iterator[Sample]:
        for position, sample in read_samples(source, bar.track(order, description="asking"), asked.bad):
            positions[sample.id] = position
            yield sample

    with progress_bar(show_progress) as bar:
        samples = read()
        for first in samples:
            batch = collate(chain([first], islice(samples, batch_size - 1)))
            asked.bad += [BadSampleNote(*note) for note in batch.bad]
            if len(batch):
                _ask_batch(model, batch, [positions[name] for name in batch.ids], asked, batch_size)
    return asked


@torch.inference_mode()
def _ask_batch(
    model: AnsweringModel, batch: DialogueBatch, positions: Sequence[int], asked: _Asked, num_rows: int
) -> None:
    """Ask all questions about the images of a batch, `num_rows` at a time."""
    other = _others(batch)
    batch = batch.to(model.device)
    prefix = model.prefix(batch)
    _add_loss(model, batch, prefix, asked, num_rows)
    assert batch.image_of_row is not None
    asked.num_images += len(batch)
    questions, prompts, images = [], [], []
    for dialogue, image in zip(batch.dialogues, batch.image_of_row.tolist(), strict=True):
        for number, turn in enumerate(dialogue.turns):
            num_new = model.generation.max_new_tokens
            prompts.append(model.chat.prompt(dialogue.turns[:number], turn.question, model.max_len, num_new))
            questions.append(_Question(turn.question, turn.answer, dialogue.kind, positions[image]))
            images.append(image)
    asked.questions += questions

    def answers(rows: Sequence[int], images: Sequence[int]) -> Iterator[str]:
        for start in range(0, len(rows), num_rows):
            image_of_row = torch.tensor(images[start : start + num_rows], device=model.device)
            yield from model.answer(prefix, image_of_row, [prompts[row] for row in rows[start : start + num_rows]])

    for question, answer in zip(questions, answers(range(len(prompts)), images), strict=True):
        question.answer = answer
    rows = [row for row, image in enumerate(images) if image in other]
    for row, answer in zip(rows, answers(rows, [other[images[row]] for row in rows]), strict=True):
        questions[row].shuffled = answer


def _others(batch: DialogueBatch) -> dict[int, int]:
    """For each sample of a batch the next one, in a circle, that differs in image or sound, if there is one."""
    parts = [part for part in (batch.image, batch.audio) if part is not None]
    names = [
        blake2b(b"".join(part[row].numpy().tobytes() for part in parts), digest_size=16).digest()
        for row in range(len(batch))
    ]
    found = {}
    for row, name in enumerate(names):
        circle = (*range(row + 1, len(names)), *range(row))
        if others := [other for other in circle if names[other] != name]:
            found[row] = others[0]
    return found


def _add_loss(model: AnsweringModel, batch: DialogueBatch, prefix: Prefix, asked: _Asked, num_rows: int) -> None:
    assert batch.input_ids is not None
    assert batch.attention_mask is not None
    assert batch.labels is not None
    assert batch.image_of_row is not None
    for start in range(0, len(batch.input_ids), num_rows):
        rows = slice(start, start + num_rows)
        labels = batch.labels[rows]
        output = model.model.decoder(
            batch.input_ids[rows],
            batch.attention_mask[rows],
            prefix.tokens,
            labels,
            prefix.mask,
            prefix_of_row=batch.image_of_row[rows],
        )
        num_tokens = int((labels != IGNORED).sum())
        asked.loss_sum += float(output.loss) * num_tokens
        asked.num_tokens += num_tokens


def _most_frequent(dialogues: Iterable[Dialogue]) -> Guess:
    """The most frequent answer to a question in these dialogues, or else to a type of question."""
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    by_kind: dict[str | None, Counter[str]] = defaultdict(Counter)
    for dialogue in dialogues:
        for turn in dialogue.turns:
            by_question[turn.question][turn.answer] += 1
            by_kind[dialogue.kind][turn.answer] += 1

    def guess(question: str, kind: str | None) -> str:
        counts = by_question.get(question) or by_kind.get(kind)
        return counts.most_common(1)[0][0] if counts else ""

    return guess


def _scores(questions: Sequence[_Question], guess: Guess | None) -> dict[str, AnswerScores]:
    """Scores by the names that `AnswerMetrics` has for them."""
    others = [(q.shuffled, q.expected) for q in questions if q.shuffled is not None]
    scores = {"model": score((q.answer, q.expected) for q in questions), "shuffled": score(others)}
    if guess is not None:
        scores["blind"] = score((guess(q.question, q.kind), q.expected) for q in questions)
    return scores


def _examples(source: Source, questions: Sequence[_Question]) -> Iterator[AnsweredQuestion]:
    """A few questions at even distances, not picked by their outcome."""
    for chosen in spread(questions, NUM_EXAMPLES):
        picture = source[chosen.position].image
        yield AnsweredQuestion(
            image=None if picture is None else data_uri(picture),
            question=chosen.question,
            expected=chosen.expected,
            answer=chosen.answer,
            right=exact_match(chosen.answer, chosen.expected),
            kind=chosen.kind,
        )
