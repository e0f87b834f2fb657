"""Evaluating answers: every turn is asked, beside another image and beside the most frequent answers."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fake_model import COLOURS, ListSource
from impresa.data.chat import PlainChat
from impresa.data.dialogue import Dialogue, Turn, ask, with_references
from impresa.data.sample import Sample
from impresa.data.sources.base import BadSample, Blocks
from impresa.errors import DataError
from impresa.evaluation.results import AnswerMetrics, AnswerScores, read_evaluation, save_evaluation
from impresa.fusion import Prefix
from impresa.tasks.answering.answerer import AnsweringModel
from impresa.tasks.answering.evaluate import NUM_EXAMPLES, evaluate_answers
from tiny_vlm import SIZE, answering, collated, tiny_vlm


@dataclass
class Squares(ListSource):
    """Samples with dialogues."""

    def dialogues(self) -> Iterator[Dialogue]:
        return (said for item in self.items if isinstance(item, Sample) for said in item.dialogues)


def squares(num: int = 24) -> Squares:
    """Plain squares; each is asked for its colour, and whether there is something, which needs no image."""
    samples: list[Any] = []
    for number in range(num):
        name = list(COLOURS)[number % len(COLOURS)]
        image = Image.new("RGB", (SIZE, SIZE), COLOURS[name])
        said = (ask("what colour is it?", name, "colour"), ask("is there something?", "yes", "existence"))
        samples.append(Sample(id=f"square-{number}", image=image, dialogues=said))
    return Squares(samples)


class Seeing(AnsweringModel):
    """A model whose answers are scripted: the colour of the image, or always the same if it does not look."""

    looks = True
    asked: list[str]

    def answer(self, prefix: Prefix, place: torch.Tensor, prompts: Any, *_: Any) -> Any:
        questions = [self.chat.decode(prompt.ids) for prompt in prompts]
        self.asked += questions
        names = [self.colours[image] if self.looks else "red" for image in place.tolist()]
        return ["yes" if "something" in question else name for question, name in zip(questions, names, strict=True)]

    def prefix(self, batch: Any) -> Prefix:
        middle = batch.image[:, :, SIZE // 2, SIZE // 2]
        known = torch.stack(
            [self.preprocessing.image(Image.new("RGB", (SIZE, SIZE), rgb))[:, 0, 0] for rgb in COLOURS.values()]
        )
        self.colours = [list(COLOURS)[(known - pixel).abs().sum(dim=1).argmin()] for pixel in middle]
        return super().prefix(batch)


def seeing(*, looks: bool = True) -> Seeing:
    chat = PlainChat.train(list(squares().dialogues()), 290)
    plain = answering(tiny_vlm("dataset.batch_size=8"), chat)
    model = Seeing(plain.model, plain.config, plain.preprocessing, "cpu")
    model.looks, model.asked = looks, []
    return model


def test_a_model_that_looks_beats_itself_with_other_images() -> None:
    evaluation = evaluate_answers(seeing(), squares(), data="squares", train_source=squares())
    answers = evaluation.answers
    assert answers is not None
    assert (evaluation.num_images, evaluation.num_texts, evaluation.num_distinct_texts) == (24, 48, 2)
    assert answers.model == AnswerScores(num_questions=48, exact_match=1.0, token_f1=1.0)
    assert 0.5 <= answers.shuffled.exact_match < 0.75
    assert answers.blind is not None
    assert answers.blind.exact_match == pytest.approx(0.5 + 0.5 / len(COLOURS))
    assert answers.looks_at_images
    assert answers.kinds["colour"]["model"].exact_match == answers.kinds["existence"]["shuffled"].exact_match == 1
    assert answers.kinds["colour"]["shuffled"].exact_match < 0.5
    assert answers.kinds["existence"]["blind"].exact_match == 1
    assert sum(scores["model"].num_questions for scores in answers.kinds.values()) == 48


def test_a_model_that_ignores_images_is_found_out() -> None:
    answers = evaluate_answers(seeing(looks=False), squares(), data="squares").answers
    assert answers is not None
    assert answers.model == answers.shuffled
    assert not answers.looks_at_images
    assert answers.blind is None
    assert "blind" not in answers.kinds["colour"]


def test_every_turn_is_asked_with_the_right_answers_before_it() -> None:
    model, source = seeing(), squares(2)
    turns = (Turn("what colour is it?", "red"), Turn("is there something?", "yes"))
    source.items[0] = replace(source.items[0], dialogues=(Dialogue(turns),))
    evaluation = evaluate_answers(model, source, data="squares")
    assert evaluation.num_texts == 4
    after = model.chat.decode(model.chat.prompt(turns[:1], "is there something?", 48))
    assert after in model.asked
    assert evaluation.answers is not None
    assert set(evaluation.answers.kinds) == {"colour", "existence"}  # what has no type is in the whole alone
    assert evaluation.answers.model.num_questions == 4


def test_the_loss_is_the_mean_over_all_tokens_whatever_the_batches() -> None:
    model = seeing()
    losses = [
        evaluate_answers(model, squares(10), data="squares", batch_size=size).answers.loss  # type: ignore[union-attr]
        for size in (1, 4, 10)
    ]
    with torch.no_grad():
        expected = model.model(collated(squares(10).items, model.chat)).loss.item()  # type: ignore[arg-type]
    assert losses == [pytest.approx(expected, rel=1e-5)] * 3
    answers = evaluate_answers(model, squares(10), data="squares").answers
    assert answers is not None
    assert answers.perplexity == pytest.approx(math.exp(expected), rel=1e-4)


def test_one_image_has_no_other() -> None:
    answers = evaluate_answers(seeing(), squares(1), data="squares").answers
    assert answers is not None
    assert answers.shuffled.num_questions == 0
    assert answers.model.num_questions == 2


def test_the_data_may_be_sorted() -> None:
    source = squares()
    source.items.sort(key=lambda sample: sample.dialogues[0].turns[0].answer)  # type: ignore[union-attr]
    answers = evaluate_answers(seeing(), source, data="squares", batch_size=4).answers
    assert answers is not None
    assert answers.kinds["colour"]["shuffled"].exact_match < 0.6


def test_other_images_are_other_images() -> None:
    source = squares(8)
    for number in range(1, 8):
        source.items[number] = replace(source.items[number], image=source.items[0].image)  # type: ignore[union-attr]
    answers = evaluate_answers(seeing(), Squares(source.items[:3]), data="squares").answers
    assert answers is not None
    assert answers.shuffled.num_questions == 0
    source.items[7] = squares(8).items[7]
    answers = evaluate_answers(seeing(), source, data="squares", batch_size=8).answers
    assert answers is not None
    assert answers.shuffled.num_questions == 16
    asked = [said.turns[0].answer for item in source.items for said in item.dialogues]  # type: ignore[union-attr]
    # Each square of the one kind is exchanged for the single other one, and that for one of them.
    assert answers.kinds["colour"]["shuffled"].exact_match == asked[:14:2].count(asked[14]) / 8


def test_a_batch_of_many_questions_is_asked_in_parts() -> None:
    source = squares(4)
    for number, item in enumerate(source.items):
        source.items[number] = replace(item, dialogues=item.dialogues * 5)  # type: ignore[union-attr]
    model, rows = seeing(), []
    whole = evaluate_answers(model, source, data="squares", batch_size=40)
    forward = type(model.model.decoder).forward

    def count(self: Any, input_ids: torch.Tensor, *rest: Any, **named: Any) -> Any:
        rows.append(len(input_ids))
        return forward(self, input_ids, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.model.decoder), "forward", count)
        answer = model.answer
        model.answer = lambda prefix, place, *rest: (rows.append(len(place)), answer(prefix, place, *rest))[1]  # type: ignore
        parts = evaluate_answers(model, source, data="squares", batch_size=4)
    assert max(rows) == 4
    assert parts.num_texts == whole.num_texts == 40
    assert parts.answers is not None
    assert whole.answers is not None
    assert parts.answers.model == whole.answers.model
    assert parts.answers.loss == pytest.approx(whole.answers.loss, rel=1e-5)


def test_photographs_are_not_held() -> None:
    class Photos(Squares):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            photo = sample.image.copy()  # type: ignore[union-attr]
            seen.append(weakref.ref(photo))
            most.append(sum(photo() is not None for photo in seen))
            return replace(sample, image=photo)

    seen: list[Any] = []
    most: list[int] = []
    evaluate_answers(seeing(), Photos(squares(20).items), data="squares", batch_size=20)
    assert max(most[:20]) <= 3


def test_samples_that_lie_together_are_read_together() -> None:
    class InBlocks(Squares):
        def __getitem__(self, index: int) -> Sample:
            read.append(index // 4)
            return super().__getitem__(index)

        def blocks(self) -> Blocks:
            return Blocks((4,) * 6, num_held=2)

    read: list[int] = []
    evaluate_answers(seeing(), InBlocks(squares(24).items), data="squares", batch_size=8)
    for start in range(0, 24, 8):
        assert len(set(read[start : start + 8])) == 2
    assert len(set(read[:24])) == 6


def test_a_long_question_leaves_room_for_the_answer() -> None:
    model, source = seeing(), squares(2)
    long = ask("one two three " * 40, "red", "colour")
    source.items[0] = replace(source.items[0], dialogues=(long,))  # type: ignore[union-attr]
    lengths: list[int] = []
    answer = model.answer

    def noting(prefix: Prefix, place: torch.Tensor, prompts: Any, *rest: Any) -> Any:
        lengths.extend(len(prompt.ids) for prompt in prompts)
        return answer(prefix, place, prompts, *rest)

    model.answer = noting  # type: ignore[method-assign]
    evaluate_answers(model, source, data="squares")
    assert max(lengths) == model.max_len - model.generation.max_new_tokens


def test_bad_samples_are_listed_and_nothing_usable_is_an_error() -> None:
    source = squares(4)
    source.items[1] = BadSample("square-1", "truncated")
    source.items[2] = replace(source.items[2], dialogues=())
    evaluation = evaluate_answers(seeing(), source, data="squares")
    assert {(note.id, note.reason) for note in evaluation.bad_samples} == {
        ("square-1", "truncated"),
        ("square-2", "nothing is asked"),
    }
    assert evaluation.num_images == 2
    with pytest.raises(DataError, match=r"^squares: no usable sample \(square-1: truncated\)"):
        evaluate_answers(seeing(), Squares([source.items[1]]), data="squares")
    bad = [BadSample(f"square-{number}", "truncated" if number < 3 else "no image") for number in range(5)]
    with pytest.raises(DataError) as caught:
        evaluate_answers(seeing(), Squares([*bad]), data="squares")
    told = str(caught.value)
    assert told.count("truncated") == told.count("no image") == 1
    assert told.endswith("; `impresa data check PATH --questions` lists them")


def test_examples_are_those_of_their_images_and_survive_the_disk(tmp_path: Any) -> None:
    evaluation = evaluate_answers(seeing(), squares(), data="squares", train_source=squares())
    found = evaluation.gallery.questions
    assert len(found) == NUM_EXAMPLES
    assert all(example.right and example.image and example.answer == example.expected for example in found)
    save_evaluation(evaluation, tmp_path)
    assert read_evaluation(tmp_path) == evaluation


def metrics(
    right: tuple[float, float], other: tuple[float, float], num: int = 100, num_other: int = 100
) -> AnswerMetrics:
    model, shuffled = AnswerScores(num, *right), AnswerScores(num_other, *other)
    return AnswerMetrics(model, shuffled, None, bleu=0, rouge_l=0, loss=1, perplexity=2.7)


@pytest.mark.parametrize(
    ("right", "other", "looks"),
    [
        ((0.9, 0.9), (0.3, 0.3), True),
        ((0.5, 0.5), (0.5, 0.5), False),
        ((0.52, 0.52), (0.5, 0.5), False),  # within the noise of a hundred questions
        ((0.3, 0.3), (0.9, 0.9), False),
        ((0.0, 0.6), (0.0, 0.3), True),  # captions are hardly ever word for word
        ((0.0, 0.35), (0.0, 0.3), False),
    ],
)
def test_what_counts_as_looking(right: tuple[float, float], other: tuple[float, float], looks: bool) -> None:
    assert metrics(right, other).looks_at_images is looks


def untyped(num: int = 12, *, texts: int = 2) -> Squares:
    """The same without types of questions, the first asked in so many ways less one; all with lists of answers."""
    source = squares(num)
    for number, sample in enumerate(source.items):
        colour, there = (said.turns[0] for said in sample.dialogues)  # type: ignore[union-attr]
        question = f"{colour.question} ({number % (texts - 1)})"
        turns = (
            with_references(question, [colour.answer] * 7 + ["grey"] * 3),
            with_references(there.question, ["no"] * 10),
        )
        source.items[number] = replace(sample, dialogues=tuple(Dialogue((turn,)) for turn in turns))  # type: ignore[type-var]
    return source


@pytest.mark.parametrize(("texts", "rows"), [(2, 2), (3, 3), (20, 20), (21, 0)])
def test_scores_by_text_where_there_are_no_types(texts: int, rows: int) -> None:
    answers = evaluate_answers(seeing(), untyped(40, texts=texts), data="squares").answers
    assert answers is not None
    assert answers.kinds == {}
    assert len(answers.texts) == rows
    if rows:
        assert answers.texts["is there something?"]["model"].exact_match == 0
        assert answers.texts["what colour is it? (0)"]["model"].exact_match == 1
    assert evaluate_answers(seeing(), squares(4), data="squares").answers.texts == {}  # type: ignore[union-attr]


def test_several_right_answers_have_their_metrics() -> None:
    evaluation = evaluate_answers(seeing(), untyped(), data="squares", train_source=untyped())
    answers = evaluation.answers
    assert answers is not None
    assert (answers.model.exact_match, answers.model.vqa_accuracy, answers.model.anls) == (0.5, 0.5, 0.5)
    assert answers.blind is not None
    assert answers.blind.vqa_accuracy is not None
    # Most frequent of all right answers are the thirty-six grey ones: three of ten, 0.9, and "no" is always right.
    assert answers.blind.vqa_accuracy == pytest.approx((0.9 + 1) / 2)
    assert {"vqa_accuracy", "anls"} <= evaluation.intervals["model"].keys()
    plain = evaluate_answers(seeing(), squares(), data="squares").answers
    assert plain is not None
    assert plain.model.vqa_accuracy is plain.model.anls is None


def test_predictions_are_all_answers(tmp_path: Path) -> None:
    evaluation = evaluate_answers(seeing(), untyped(), data="squares")
    save_evaluation(evaluation, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 24
    assert evaluation.answers is not None
    assert sum(row["correct"] for row in rows) / 24 == evaluation.answers.model.exact_match
    assert sum(row["score"] for row in rows) / 24 == pytest.approx(evaluation.answers.model.vqa_accuracy)
    names = {f"square-{number}": list(COLOURS)[number % len(COLOURS)] for number in range(12)}
    for row in rows:
        assert len(row["references"]) == 10
        if "colour" in row["question"]:
            assert row["answer"] == names[row["sample"]]
            assert row["other_answer"] == names[row["other_sample"]] != row["answer"]
        else:
            assert (row["answer"], row["correct"], row["kind"]) == ("yes", False, None)
    assert "predictions" not in evaluation.to_dict()


def test_the_report_has_wrong_answers_however_few() -> None:
    source = squares(40)
    wrong = replace(source.items[7], dialogues=(ask("what colour is it?", "beige"),))  # type: ignore[type-var]
    source.items[7] = wrong
    gallery = evaluate_answers(seeing(), source, data="squares").gallery
    (shown,) = gallery.wrong
    assert (shown.expected, shown.right) == ("beige", False)
    assert shown.other is not None
    assert shown.other != shown.answer
