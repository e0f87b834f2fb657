"""Evaluate a vision-language model: ask every question of a source, and ask it again about another image."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
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
from impresa.evaluation.gallery import data_uri
from impresa.evaluation.progress import progress_bar
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
from impresa.tasks.samples import nothing_usable, read_samples

NUM_EXAMPLES = 12


@dataclass
class _Asked:
    """Every question that was asked, and what was answered."""

    questions: list[str] = field(default_factory=list)
    kinds: list[str | None] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    shuffled: list[str] = field(default_factory=list)
    is_shuffled: list[bool] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
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
    batches of a random but fixed order, for ones that are not equal. Bad samples are skipped and listed.

    Args:
        model: the model; its weights are not changed.
        source: the data, opened with dialogues.
        data: what the data are called in the result.
        train_source: the training data, opened with dialogues, for the most frequent answers; None leaves them out.
        batch_size: images, and questions, at a time. None: the config's evaluation batch size.
        show_progress: a progress bar on standard error.

    Raises:
        DataError: no sample is usable.
    """
    config = model.config.dataset
    asked = _ask_all(model, source, batch_size or config.eval_batch_size or config.batch_size, show_progress)
    if not asked.questions:
        raise nothing_usable(data, asked.bad, "impresa data check PATH --questions")
    guesses = None if train_source is None else _Guesses(train_source.dialogues())
    blind = None if guesses is None else [guesses(q, k) for q, k in zip(asked.questions, asked.kinds, strict=True)]
    loss = asked.loss_sum / asked.num_tokens
    return Evaluation(
        data=data,
        num_images=asked.num_images,
        num_texts=len(asked.questions),
        num_distinct_texts=len(set(asked.questions)),
        bad_samples=tuple(asked.bad),
        answers=AnswerMetrics(
            model=score(asked.answers, asked.expected),
            shuffled=_score_shuffled(asked, range(len(asked.questions))),
            blind=None if blind is None else score(blind, asked.expected),
            bleu=bleu(asked.answers, asked.expected),
            rouge_l=rouge_l(asked.answers, asked.expected),
            loss=loss,
            perplexity=math.exp(min(loss, 700.0)),
            kinds=_by_kind(asked, blind),
        ),
        gallery=Gallery(questions=tuple(_examples(source, asked))),
    )


def _ask_all(model: AnsweringModel, source: Source, batch_size: int, show_progress: bool) -> _Asked:
    asked = _Asked()
    assert model.config.decoder is not None
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
    """Ask all questions about the images of a batch, so many at a time."""
    other = _others(batch)
    batch = batch.to(model.device)
    prefix = model.prefix(batch)
    _add_loss(model, batch, prefix, asked, num_rows)
    images, prompts, num_new = [], [], model.generation.max_new_tokens
    assert batch.image_of_row is not None
    for dialogue, image in zip(batch.dialogues, batch.image_of_row.tolist(), strict=True):
        for number, turn in enumerate(dialogue.turns):
            prompts.append(model.chat.prompt(dialogue.turns[:number], turn.question, model.max_len, num_new))
            images.append(image)
            asked.questions.append(turn.question)
            asked.expected.append(turn.answer)
            asked.kinds.append(dialogue.kind)
            asked.positions.append(positions[image])

    def answers(rows: Sequence[int], images: Sequence[int]) -> list[str]:
        found: list[str] = []
        for start in range(0, len(rows), num_rows):
            place = torch.tensor(images[start : start + num_rows], device=model.device)
            found += model.answer(prefix, place, [prompts[row] for row in rows[start : start + num_rows]])
        return found

    asked.num_images += len(batch)
    asked.answers += answers(range(len(prompts)), images)
    rows = [row for row, image in enumerate(images) if image in other]
    said = dict(zip(rows, answers(rows, [other[images[row]] for row in rows]), strict=True))
    asked.shuffled += [said.get(row, "") for row in range(len(prompts))]
    asked.is_shuffled += [row in said for row in range(len(prompts))]


def _others(batch: DialogueBatch) -> dict[int, int]:
    """For each sample of a batch the next one, in a circle, that does not look and sound the same, if there is one."""
    parts = [part for part in (batch.image, batch.audio) if part is not None]
    names = [
        blake2b(b"".join(part[row].numpy().tobytes() for part in parts), digest_size=16).digest()
        for row in range(len(batch))
    ]
    found = {}
    for row, name in enumerate(names):
        circle = ((row + step) % len(names) for step in range(1, len(names)))
        if (other := next((place for place in circle if names[place] != name), None)) is not None:
            found[row] = other
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


class _Guesses:
    """The most frequent answers of the training data, by question and by type."""

    def __init__(self, dialogues: Iterable[Dialogue]) -> None:
        self._by_question: dict[str, Counter[str]] = defaultdict(Counter)
        self._by_kind: dict[str | None, Counter[str]] = defaultdict(Counter)
        for dialogue in dialogues:
            for turn in dialogue.turns:
                self._by_question[turn.question][turn.answer] += 1
                self._by_kind[dialogue.kind][turn.answer] += 1

    def __call__(self, question: str, kind: str | None) -> str:
        counts = self._by_question.get(question) or self._by_kind.get(kind)
        return counts.most_common(1)[0][0] if counts else ""


def _by_kind(asked: _Asked, blind: Sequence[str] | None) -> dict[str, dict[str, AnswerScores]]:
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, kind in enumerate(asked.kinds):
        if kind is not None:
            rows_of[kind].append(row)
    found = {}
    for kind, rows in sorted(rows_of.items()):
        expected = [asked.expected[row] for row in rows]
        scores = {
            "model": score([asked.answers[row] for row in rows], expected),
            "shuffled": _score_shuffled(asked, rows),
        }
        if blind is not None:
            scores["blind"] = score([blind[row] for row in rows], expected)
        found[kind] = scores
    return found


def _score_shuffled(asked: _Asked, rows: Iterable[int]) -> AnswerScores:
    """Of those that could be asked about another image; a batch of one image has no other."""
    chosen = [row for row in rows if asked.is_shuffled[row]]
    if not chosen:
        return AnswerScores(num_questions=0, exact_match=0.0, token_f1=0.0)
    return score([asked.shuffled[row] for row in chosen], [asked.expected[row] for row in chosen])


def _examples(source: Source, asked: _Asked) -> Iterator[AnsweredQuestion]:
    """A few questions at even distances, not picked by their outcome."""
    num = min(NUM_EXAMPLES, len(asked.questions))
    for number in range(num):
        row = number * len(asked.questions) // num
        picture = source[asked.positions[row]].image
        yield AnsweredQuestion(
            image=None if picture is None else data_uri(picture),
            question=asked.questions[row],
            expected=asked.expected[row],
            answer=asked.answers[row],
            right=exact_match(asked.answers[row], asked.expected[row]),
            kind=asked.kinds[row],
        )
