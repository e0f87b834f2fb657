"""Several images of one question: rows that hold them, the prefix that they make, and asking about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import impresa
from impresa.cli.main import main
from impresa.config import ExperimentConfig
from impresa.data.chat import TemplateChat
from impresa.data.dialogue import ask
from impresa.data.images import ImageTransform
from impresa.data.loading import TrainingView
from impresa.data.preprocessing import Preprocessing
from impresa.data.sample import Sample
from impresa.errors import ConfigError, DataError
from impresa.evaluation.results import read_evaluation
from impresa.tasks.answering.answerer import AnsweringModel
from impresa.tasks.answering.batch import DialogueBatch, DialogueCollator
from impresa.tasks.answering.build import build_vlm
from impresa.tasks.answering.squares import Place
from impresa.tasks.answering.subjects import subjects_of
from impresa.training.run import train
from shared_folder import shared_folder
from tiny_qwen import chat_tokenizer, save_qwen
from tiny_run import dry_run_of
from tiny_vlm import SIZE, answering, chat, picture, rough, tiny_qwen_vlm, tiny_vlm

MOST = 3
FUSIONS = {
    "concat": (),
    "cross_attention": ("fusion.strategy=cross_attention", "fusion.num_queries=6", "fusion.layers=1"),
    "gated": ("fusion.strategy=gated", "fusion.num_queries=6"),
}


def several(*overrides: str) -> ExperimentConfig:
    return tiny_vlm(f"dataset.max_images={MOST}", "decoder.generation.max_new_tokens=12", *overrides)


def sample(number: int, *seeds: int) -> Sample:
    first, *more = map(picture, seeds)
    questions = (ask("what colour?", "red", "colour"), ask("is there a circle?", "yes, there is"))
    return Sample(f"s{number}", first, dialogues=questions[: 1 + number % 2], more_images=tuple(more))


def collated(samples: Sequence[Sample]) -> DialogueBatch:
    batch = DialogueCollator(Preprocessing(chat(), ImageTransform(SIZE)), 160, MOST)(samples)
    assert not batch.bad
    return batch


MIXED = [sample(0, 1), sample(1, 2, 3, 4), sample(2, 5, 6)]


def test_a_batch_holds_all_squares_and_their_places() -> None:
    batch = collated(MIXED)
    assert batch.image.shape == (6, 3, SIZE, SIZE)
    assert batch.places == [Place(0), Place(1), Place(1, 1), Place(1, 2), Place(2), Place(2, 1)]
    assert (len(batch), batch.num_images) == (3, 6)
    assert torch.equal(batch.image[4], ImageTransform(SIZE)(picture(5)))
    assert collated([sample(0, 1), sample(1, 2)]).places is None


def test_too_many_images_cost_their_sample() -> None:
    batch = DialogueCollator(Preprocessing(chat(), ImageTransform(SIZE)), 160, 1)(MIXED)
    assert batch.ids == ["s0"]
    assert batch.bad[0] == ("s1", "it has 3 images, and this model reads 1 (dataset.max_images)")


@pytest.mark.parametrize("fusion", FUSIONS)
def test_loss_and_prefix_are_the_same_alone_and_beside_questions_with_more_images(fusion: str) -> None:
    model = rough(build_vlm(several(*FUSIONS[fusion]), 280)).eval()
    whole = model.prefix(collated(MIXED))
    total, weight = torch.zeros(()), 0
    for number, one in enumerate(MIXED):
        batch = collated([one])
        alone = model.prefix(batch)
        torch.testing.assert_close(
            whole.tokens[number, whole.mask[number]], alone.tokens[alone.mask], atol=1e-5, rtol=0
        )
        total, weight = total + model(batch).loss * batch.weight, weight + batch.weight
    torch.testing.assert_close(model(collated(MIXED)).loss, total / weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_order_of_the_images_counts(fusion: str) -> None:
    model = rough(build_vlm(several(*FUSIONS[fusion]), 280)).eval()
    one, other = (model(collated([sample(0, *seeds)])).loss for seeds in ((1, 2, 3), (3, 2, 1)))
    assert abs(one - other) > 1e-4
    for marks in model.square_marks.parameters():
        marks.data.zero_()
    one, other = (model(collated([sample(0, *seeds)])).loss for seeds in ((1, 2, 3), (3, 2, 1)))
    assert (abs(one - other) < 1e-4) == (fusion != "concat")  # queries know no order but by the marks


@pytest.mark.parametrize("samples", [MIXED, MIXED[:1], [*MIXED, Sample("s3", None, dialogues=MIXED[0].dialogues)]])
def test_a_batch_of_no_samples_has_the_rows_and_prefixes_of_those_it_was_made_of(samples: list[Sample]) -> None:
    model, batch = rough(build_vlm(several(), 280)).eval(), collated(samples)
    emptied = batch.emptied()
    assert (len(emptied), emptied.weight) == (0, 0)
    torch.testing.assert_close(model.prefix(emptied).tokens, model.prefix(batch).tokens)
    torch.testing.assert_close(model(emptied).loss, model(batch).loss)


def test_prefixes_stand_one_after_the_other() -> None:
    model = rough(build_vlm(several(), 280)).eval()
    prefix = model.prefix(collated([MIXED[1]]))
    assert prefix.tokens.shape[1] == 3 * 4
    alone = model.prefix(collated([sample(0, 2)]))
    torch.testing.assert_close(prefix.tokens[0, :4], alone.tokens[0], atol=1e-5, rtol=0)
    whole = model.prefix(collated(MIXED))
    assert whole.mask.sum(dim=1).tolist() == [4, 12, 8]
    assert not whole.tokens[~whole.mask].any()


def test_a_single_image_has_the_weights_and_the_loss_that_it_had() -> None:
    torch.manual_seed(0)
    plain = build_vlm(tiny_vlm(), 280)
    torch.manual_seed(0)
    marked = build_vlm(several(), 280)
    assert {name for name in marked.state_dict() if name not in plain.state_dict()} == {"square_marks.images"}
    assert all(torch.equal(tensor, marked.state_dict()[name]) for name, tensor in plain.state_dict().items())
    marked.square_marks.images.data.zero_()
    batch = collated([sample(0, 1), sample(1, 2)])
    torch.testing.assert_close(marked.eval()(batch).loss, plain.eval()(batch).loss)


def test_every_image_and_mark_gets_a_gradient() -> None:
    model = rough(build_vlm(several(), 280))
    batch = collated(MIXED)
    pixels = batch.image.requires_grad_()
    model(replace(batch, image=pixels)).loss.backward()
    assert all(pixels.grad.flatten(1).abs().sum(dim=1) > 0)
    assert all(model.square_marks.images.grad.abs().sum(dim=1) > 0)


def test_all_images_are_augmented() -> None:
    view = TrainingView(0, "clip", ImageTransform(SIZE))
    seen = view(sample(0, 1, 2), (0, 0))
    assert [image.size for image in seen.images] == [(SIZE, SIZE)] * 2
    assert seen.images[0].tobytes() == view(sample(0, 1), (0, 0)).images[0].tobytes()


@pytest.fixture(scope="module")
def model() -> AnsweringModel:
    torch.manual_seed(0)
    return answering(several())


def test_a_list_within_the_list_is_one_question(model: AnsweringModel) -> None:
    a, b, c = map(picture, range(3))
    together = model.ask([[a, b], c, (c, b, a)], "what?")
    assert len(together) == 3
    assert together == [model.ask([[a, b]], "what?")[0], model.ask(c, "what?"), model.ask([[c, b, a]], "what?")[0]]
    assert together[0] == "".join(model.stream([a, b], "what?"))
    stacked = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in (a, b)])
    assert model.ask([stacked], "what?") == together[:1]
    assert model.ask([a, b], "what?") == [model.ask(a, "what?"), model.ask(b, "what?")]
    one, other = (model._prefix(subjects_of([images], None)[0]).tokens for images in ([a, b], [b, a]))
    assert not torch.allclose(one, other, atol=1e-3)


def test_more_than_the_model_reads_is_refused(model: AnsweringModel) -> None:
    fault = r"4 images of one question, and this model reads 3 \(dataset\.max_images\); give fewer$"
    with pytest.raises(DataError, match=rf"^images\[1\]: {fault}"):
        model.ask([picture(0), [picture(0)] * 4], "what?")
    with pytest.raises(DataError, match=rf"^image: {fault}"):
        model.stream([picture(0)] * 4, "what?")
    with pytest.raises(DataError, match=r"^images\[0\]: is an empty list; give an image, or None$"):
        model.ask([[]], "what?")
    with pytest.raises(DataError, match=r"^images\[0\]\[1\]: gone\.png: there is no such file"):
        model.ask([[picture(0), "gone.png"]], "what?")


def test_a_pretrained_language_model_reads_them_alone_as_in_a_batch(tmp_path: Path) -> None:
    asked = answering(tiny_qwen_vlm(save_qwen(tmp_path), "dataset.max_images=3"), TemplateChat(chat_tokenizer()))
    a, b, c = map(picture, range(3))
    subjects = [[a, b], [c], [c, b, a]]
    alone = [asked.ask([images], "what colour?")[0] for images in subjects]
    assert asked.ask(subjects, "what colour?") == alone
    assert len(set(alone)) > 1


@cache
def data() -> Path:
    """Twelve pictures, and rows with one or two of them, or four."""
    folder = shared_folder()
    for number in range(12):
        picture(number).save(folder / f"{number}.png")
    rows = [
        {"image": [f"{n}.png", f"{n + 1}.png"] if n % 4 == 0 else f"{n}.png", "question": "how many?", "answer": n % 2}
        for n in range(11)
    ]
    rows.append({"image": [f"{n}.png" for n in range(4)], "question": "how many?", "answer": 4})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def on_data(*overrides: str) -> ExperimentConfig:
    files = (f"dataset.train_path={data()}", f"dataset.val_path={data()}", "dataset.max_bad_fraction=0.1")
    return several(*files, "dataset.batch_size=4", "trainer.epochs=1", *overrides)


@cache
def run() -> Path:
    """A finished run; not to be changed."""
    return train(on_data(), shared_folder() / "run", command=[])


def test_a_run_reads_them_from_the_first_step_to_its_predictions() -> None:
    evaluation = read_evaluation(run())
    assert evaluation is not None
    assert (evaluation.num_images, evaluation.num_texts) == (14, 11)
    fault = "the row has several images (4), and 3 are read (dataset.max_images); "
    assert [note.reason.startswith(fault) for note in evaluation.bad_samples] == [True]
    assert "several images (4)" in (run() / "bad_samples.jsonl").read_text()
    lines = [json.loads(line) for line in (run() / "predictions.jsonl").read_text().splitlines()]
    assert "0.png+1.png" in {line["sample"] for line in lines}
    loaded = impresa.load(run(), "cpu")  # its golden inputs are asked again
    files = [data() / f"{number}.png" for number in range(2)]
    answer = next(line["answer"] for line in lines if line["sample"] == "0.png+1.png")
    assert loaded.ask([files], "how many?") == [answer]


def test_rows_of_too_many_may_be_left_out() -> None:
    assert "11 samples to train on" in dry_run_of(on_data("dataset.skip_unsupported_rows=true"))


def test_the_command_asks_about_them_together(capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(data() / f"{number}.png") for number in range(2)]
    assert main(["ask", str(run()), *files, "--together", "how many?"]) == 0
    together = capsys.readouterr().out.strip()
    assert main(["ask", str(run()), *files, "--together", "how many?", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["image"], found["answer"]) == (files, "" if together == "(no answer)" else together)
    assert main(["ask", str(run()), *files, "how many?"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_packing_before_narrow_windows_is_refused_where_a_sample_may_have_fewer_images(tmp_path: Path) -> None:
    qwen = save_qwen(tmp_path, use_sliding_window=True, sliding_window=16, max_window_layers=0)
    for images, refused in ((1, False), (MOST, True)):
        config = tiny_qwen_vlm(qwen, f"dataset.max_images={images}", "optimization.packing=true")
        batch = DialogueCollator(Preprocessing(TemplateChat(chat_tokenizer()), ImageTransform(SIZE)), 160, images)
        model = build_vlm(config, 264)
        fault = pytest.raises(ConfigError, match=r"^optimization\.packing: a qwen2 model attends to windows of 16 tok")
        with fault if refused else nullcontext():
            model.prefix(batch(MIXED[:1]))
