"""Evaluation of a vision-language model: each question of a source is asked, and asked again about another sample."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain, islice

import numpy as np
import torch

from impresa.data.chat import Prompt
from impresa.data.dialogue import Dialogue, Turn
from impresa.data.images import ImageTransform
from impresa.data.sample import Sample
from impresa.data.sampler import shuffled_order
from impresa.data.sources import Source
from impresa.data.tiles import mean_share_cut
from impresa.decoders.base import IGNORED
from impresa.evaluation.bootstrap import Floats, Statistic
from impresa.evaluation.gallery import AnsweredQuestion, Gallery
from impresa.evaluation.intervals import digest, with_intervals
from impresa.evaluation.predictions import Prediction
from impresa.evaluation.results import AnswerMetrics, AnswerScores, BadSampleNote, Evaluation
from impresa.evaluation.text_scores import Metric, answer_statistics, is_right, metrics_for, per_question, score
from impresa.fusion import Prefix
from impresa.reports.pictures import data_uri
from impresa.tasks.answering.answerer import AnsweringModel
from impresa.tasks.answering.batch import DialogueBatch, DialogueCollator
from impresa.tasks.gallery import picture_of, seen, spread
from impresa.tasks.samples import evaluation_batch_size, nothing_usable, progress_bar, read_samples

NUM_EXAMPLES = 12
NUM_WRONG = 6
MOST_TEXTS = 20
"""Of questions that are told apart in a table."""
MOST_EXPECTED = 4
"""Right answers that the report shows beside one."""
Guess = Callable[[str, str | None], str]


@dataclass
class _Question:
    """A question about an image, and the answers to it."""

    turn: Turn
    kind: str | None
    position: int
    """Index of its sample in the source."""
    item: int
    """Number of its sample among those that were asked about."""
    sample: str
    """Name of it."""
    answer: str = ""
    other: str | None = None
    """Name of another sample, with another image; None if its batch has no other."""
    shuffled: str | None = None
    """The answer about that."""

    @property
    def question(self) -> str:
        """The text of the question."""
        return self.turn.question

    @property
    def right_answers(self) -> tuple[str, ...]:
        """All right answers."""
        return self.turn.right_answers


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
    frequent answers are those of `train_source`. Arguments and errors are those of `Task.evaluate`; sources have
    dialogues.
    """
    config = model.config.dataset
    asked = _AnswerCollector(model, evaluation_batch_size(batch_size, config))
    asked.ask(source, show_progress)
    questions = asked.questions
    if not questions:
        raise nothing_usable(data, asked.bad, "impresa data check PATH --questions")
    guess = None if train_source is None else _most_frequent(train_source.dialogues())
    right_answers = [q.right_answers for q in questions]
    metrics = metrics_for(right_answers, are_lists=any(q.turn.references for q in questions))

    def scored(some: Sequence[_Question]) -> dict[str, AnswerScores]:
        return _scores(some, guess, metrics)

    scores = scored(questions)
    answers, item = zip(*((q.answer, q.item) for q in questions), strict=True)
    statistics = asked.loss_statistics() | answer_statistics(answers, right_answers, item)
    loss = statistics["answer_loss"].value
    return with_intervals(
        Evaluation(
            data=data,
            num_images=asked.num_images,
            num_texts=len(questions),
            num_distinct_texts=len({q.question for q in questions}),
            num_sounds=asked.num_sounds,
            bad_samples=tuple(asked.bad),
            answers=AnswerMetrics(
                model=scores["model"],
                shuffled=scores["shuffled"],
                blind=scores.get("blind"),
                bleu=statistics["bleu"].value if "bleu" in statistics else None,
                rouge_l=statistics["rouge_l"].value,
                loss=loss,
                perplexity=statistics["perplexity"].value,
                kinds={kind: scored(some) for kind, some in sorted(_by(questions, lambda q: q.kind).items())},
                texts={text: scored(some) for text, some in _by_text(questions).items()},
                statistics=statistics,
            ),
            share_cut=mean_share_cut(model.preprocessing.image, asked.sizes_px, model.tiles),
            gallery=_gallery(source, questions, model.preprocessing.image),
            items=digest((q.sample, q.question, q.turn.answer, *q.turn.references) for q in questions),
            predictions=tuple(_prediction(q, list(metrics.values())[1]) for q in questions),
        )
    )


class _AnswerCollector:
    """The questions of a source, `batch_size` at a time, their answers, and the loss of the right answers."""

    def __init__(self, model: AnsweringModel, batch_size: int) -> None:
        self._model, self._batch_size = model, batch_size
        self.questions: list[_Question] = []
        self.num_images = self.num_sounds = 0
        self._num_items = 0
        self.sizes_px: list[tuple[int, int]] = []
        self._losses: list[tuple[float, int, int]] = []
        self.bad: list[BadSampleNote] = []

    def ask(self, source: Source, show_progress: bool) -> None:
        """Ask all questions of a source."""
        model = self._model
        collate = DialogueCollator(model.preprocessing, model.max_len, model.max_images, model.tiles)
        order = shuffled_order(len(source), source.blocks(), np.random.default_rng(0)).tolist()
        positions: dict[str, int] = {}

        def read() -> Iterator[Sample]:
            for position, sample in read_samples(source, bar.track(order, description="asking"), self.bad):
                positions[sample.id] = position
                self.sizes_px += [image.size for image in sample.images]
                yield sample

        with progress_bar(show_progress) as bar:
            samples = read()
            for first in samples:
                batch = collate(chain([first], islice(samples, self._batch_size - 1)))
                self.bad += [BadSampleNote(*note) for note in batch.bad]
                if len(batch):
                    self._ask_batch(batch, [positions[name] for name in batch.ids])

    @torch.inference_mode()
    def _ask_batch(self, batch: DialogueBatch, positions: Sequence[int]) -> None:
        model, other = self._model, _others(batch)
        batch = batch.to(model.device)
        prefix = model.prefix(batch)
        self._add_loss(batch, prefix)
        first_item = self._num_items
        self._num_items += len(batch)
        self.num_images += batch.num_images
        self.num_sounds += batch.num_sounds
        asked: list[tuple[_Question, Prompt, int]] = []
        assert batch.image_of_row is not None
        for dialogue, image in zip(batch.dialogues, batch.image_of_row.tolist(), strict=True):
            for number, turn in enumerate(dialogue.turns):
                num_new = model.generation.max_new_tokens
                prompt = model.chat.fitted_prompt(dialogue.turns[:number], turn.question, model.max_len, num_new)
                item, name = first_item + image, batch.ids[image]
                question = _Question(turn, dialogue.kind, positions[image], item, name)
                question.other = batch.ids[other[image]] if image in other else None
                asked.append((question, prompt, image))

        def answers(asked: Sequence[tuple[_Question, Prompt, int]]) -> Iterator[tuple[_Question, str]]:
            for start in range(0, len(asked), self._batch_size):
                questions, prompts, images = zip(*asked[start : start + self._batch_size], strict=True)
                index = torch.tensor(images, device=model.device)
                number = len(self.questions) + start
                yield from zip(questions, model.answer(prefix, index, prompts, None, number), strict=True)

        for question, answer in answers(asked):
            question.answer = answer
        for question, answer in answers([(q, prompt, other[image]) for q, prompt, image in asked if image in other]):
            question.shuffled = answer
        self.questions += [question for question, _, _ in asked]

    def _add_loss(self, batch: DialogueBatch, prefix: Prefix) -> None:
        tensors = (batch.input_ids, batch.attention_mask, batch.labels, batch.image_of_row)
        for start in range(0, len(batch.dialogues), self._batch_size):
            rows = slice(start, start + self._batch_size)
            input_ids, mask, labels, index = (tensor[rows] for tensor in tensors if tensor is not None)
            decoder = self._model.model.decoder
            output = decoder(input_ids, mask, prefix.tokens, labels, prefix.mask, prefix_of_row=index)
            num_tokens = (labels != IGNORED).sum(dim=1)
            self._losses += zip(
                output.row_losses.tolist(), num_tokens.tolist(), (index + self._num_items).tolist(), strict=True
            )

    def loss_statistics(self) -> dict[str, Statistic]:
        """The mean loss over the tokens of all right answers, and its perplexity."""
        losses, num_tokens, items = zip(*self._losses, strict=True)
        rows = per_question({"loss": np.array(losses), "tokens": np.array(num_tokens, dtype=np.float64)}, items)
        loss = Statistic((rows.sums("loss"),), (rows.sums("tokens"),))
        return {"answer_loss": loss, "perplexity": replace(loss, of_ratios=_perplexity)}


def _perplexity(losses: Floats) -> Floats:
    perplexity: Floats = np.exp(np.minimum(losses[0], 700.0))
    return perplexity


def _others(batch: DialogueBatch) -> dict[int, int]:
    """For each sample of a batch the next one, in a circle, that differs in image or sound, if there is one."""
    names = [
        blake2b(b"".join(part.numpy().tobytes() for part in batch.inputs_of(row)), digest_size=16).digest()
        for row in range(len(batch))
    ]
    found = {}
    for row, name in enumerate(names):
        circle = (*range(row + 1, len(names)), *range(row))
        if others := [other for other in circle if names[other] != name]:
            found[row] = others[0]
    return found


def _most_frequent(dialogues: Iterable[Dialogue]) -> Guess:
    """The most frequent answer to a question in these dialogues, or else to a type of question."""
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    by_kind: dict[str | None, Counter[str]] = defaultdict(Counter)
    for dialogue in dialogues:
        for turn in dialogue.turns:
            by_question[turn.question].update(turn.right_answers)
            by_kind[dialogue.kind].update(turn.right_answers)

    def guess(question: str, kind: str | None) -> str:
        counts = by_question.get(question) or by_kind.get(kind)
        return counts.most_common(1)[0][0] if counts else ""

    return guess


def _scores(
    questions: Sequence[_Question], guess: Guess | None, metrics: Mapping[str, Metric]
) -> dict[str, AnswerScores]:
    """Scores by the names that `AnswerMetrics` has for them."""

    def scored(answers: Iterable[str | None]) -> AnswerScores:
        given = [(a, q.right_answers, q.item) for a, q in zip(answers, questions, strict=True) if a is not None]
        return score([(a, right) for a, right, _ in given], [item for *_, item in given], metrics)

    scores = {"model": scored(q.answer for q in questions), "shuffled": scored(q.shuffled for q in questions)}
    if guess is not None:
        scores["blind"] = scored(guess(q.question, q.kind) for q in questions)
    return scores


def _by(questions: Sequence[_Question], key: Callable[[_Question], str | None]) -> dict[str, list[_Question]]:
    """The questions by a key; those that have none are left out."""
    found: dict[str, list[_Question]] = defaultdict(list)
    for question in questions:
        if (value := key(question)) is not None:
            found[value].append(question)
    return found


def _by_text(questions: Sequence[_Question]) -> dict[str, list[_Question]]:
    """Questions without a type by their texts, in the order of the data, if these are two or more and not many."""
    found = (
        {} if any(q.kind for q in questions) else _by(sorted(questions, key=lambda q: q.position), lambda q: q.question)
    )
    return found if 1 < len(found) <= MOST_TEXTS else {}


def _prediction(question: _Question, deciding: Metric) -> Prediction:
    return Prediction(
        sample=question.sample,
        question=question.question,
        kind=question.kind,
        answer=question.answer,
        references=question.right_answers,
        correct=is_right(question.answer, question.right_answers),
        score=round(deciding(question.answer, question.right_answers), 6),
        other_sample=question.other,
        other_answer=question.shuffled,
    )


def _gallery(source: Source, questions: Sequence[_Question], transform: ImageTransform) -> Gallery:
    """A few questions at even distances, not picked by their outcome, and a few of the wrong answers alone."""
    wrong = [question for question in questions if not is_right(question.answer, question.right_answers)]
    return Gallery(
        questions=tuple(_example(source, chosen, transform) for chosen in spread(questions, NUM_EXAMPLES)),
        wrong=tuple(_example(source, chosen, transform) for chosen in spread(wrong, NUM_WRONG, offset=0.5)),
    )


def _example(source: Source, chosen: _Question, transform: ImageTransform) -> AnsweredQuestion:
    sample = source[chosen.position]
    picture, shown = None if sample.more_images else sample.image, picture_of(sample)
    return AnsweredQuestion(
        image=None if shown is None else data_uri(shown),
        question=chosen.question,
        expected=" / ".join(text for text, _ in Counter(chosen.right_answers).most_common(MOST_EXPECTED)),
        answer=chosen.answer,
        right=is_right(chosen.answer, chosen.right_answers),
        kind=chosen.kind,
        other=chosen.shuffled,
        seen=None if picture is None else seen(picture, transform),
    )
