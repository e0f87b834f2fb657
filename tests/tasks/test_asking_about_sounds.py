"""A model whose data are sounds and no images: training, evaluation, golden inputs, and asking it."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import impresa
from impresa.cli.main import main
from impresa.config import ExperimentConfig
from impresa.errors import DataError
from impresa.evaluation.results import read_evaluation
from impresa.run_dir.golden import Golden
from impresa.tasks.answering.answerer import AnsweringModel
from impresa.tasks.answering.subjects import read_subjects
from impresa.training.run import train
from shared_folder import shared_folder
from sounds_on_disk import wav, write_wavs
from tiny_run import dry_run_of
from tiny_vlm import picture, tiny_vlm

HEARING = (
    *(
        "audio_encoder.backbone=spectrogram",
        "audio_encoder.dim=16",
        "audio_encoder.depth=1",
        "audio_encoder.num_heads=2",
    ),
    *("audio_encoder.embed_dim=16", "audio_encoder.patch_size=32", "audio_encoder.audio_max_seconds=0.2"),
)
NUM = 12


def data() -> Path:
    """Sounds of two kinds, asked what they are, and each described."""
    folder = shared_folder()
    write_wavs(folder, NUM)
    rows = [
        {"audio": f"{number}.wav", "question": "how high is it?", "answer": ["low", "high"][number >= NUM // 2]}
        for number in range(NUM)
    ]
    rows[0] = {"audio": "0.wav", "caption": "a low tone"}
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config() -> ExperimentConfig:
    """An experiment on them."""
    folder = data()
    files = (f"dataset.train_path={folder}", f"dataset.val_path={folder}", "dataset.audio_column=audio")
    return tiny_vlm(*HEARING, *files, "dataset.batch_size=4", "trainer.epochs=1")


@cache
def run() -> Path:
    """A finished run; not to be changed."""
    return train(config(), shared_folder() / "run", command=[])


@pytest.fixture(scope="module")
def model() -> AnsweringModel:
    loaded = impresa.load(run(), "cpu")
    assert isinstance(loaded, AnsweringModel)
    return loaded


def test_a_dry_run_reads_the_sounds() -> None:
    assert "12 samples to train on" in dry_run_of(config())


def test_a_run_has_evaluation_predictions_report_and_card_of_sounds() -> None:
    evaluation = read_evaluation(run())
    assert evaluation is not None
    assert (evaluation.num_images, evaluation.num_sounds, evaluation.num_texts) == (0, NUM, NUM)
    assert all(asked.image for asked in evaluation.gallery.questions)
    lines = [json.loads(line) for line in (run() / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == NUM
    assert {line["sample"] for line in lines} == {f"{number}.wav" for number in range(NUM)}
    assert all(line["other_sample"] != line["sample"] for line in lines)
    page, card = (run() / "report.html").read_text(), (run() / "README.md").read_text()
    assert "12 sounds" in page
    assert "0 images" not in page
    assert "About another sound" in page
    assert "model.ask(None, " in card
    assert 'model.caption(None, sounds=["a.wav", "b.wav"])' in card


def test_golden_inputs_are_the_sounds_and_are_checked_on_load() -> None:
    with safe_open(run() / "golden.safetensors", framework="pt") as golden:
        names = set(golden.keys())
    assert "audio_0" in names
    assert not any(name.startswith("image") for name in names)
    impresa.load(run(), "cpu")


def test_golden_files_of_older_versions_have_an_image_each() -> None:
    images = {f"image_{number}": torch.zeros(3, 8, 8, dtype=torch.uint8) for number in range(2)}
    found = read_subjects(Golden(images, {}), 2, 16)
    assert [(len(subject.images), subject.sound) for subject in found] == [(1, None)] * 2
    with pytest.raises(ValueError, match="images: not all are from 0"):
        read_subjects(Golden(images, {"images": "[-1, 3]"}), 2, 16)


def test_it_is_asked_about_sounds_alone(model: AnsweringModel) -> None:
    clips = [wav(200), wav(1500)]
    one = model.ask(None, "how high is it?", sounds=clips[0])
    assert isinstance(one, str)
    both = model.ask(None, "how high is it?", sounds=clips)
    assert both == model.ask([None, None], "how high is it?", sounds=clips)
    assert both[0] == one
    assert "".join(model.stream(None, "how high is it?", sound=clips[1])) == both[1]
    assert model.caption(None, sounds=clips[0]) == model.ask(None, "describe the image.", sounds=clips[0])


def test_what_it_cannot_be_asked_about_is_told_in_a_line(model: AnsweringModel) -> None:
    with pytest.raises(DataError, match=r"^ask: this model was trained on sounds alone; leave the images out$"):
        model.ask(picture(0), "what?", sounds=wav(200))
    with pytest.raises(DataError, match=r"^ask: there is neither an image nor a sound; give one of them$"):
        model.ask(None, "what?")
    with pytest.raises(DataError, match=r"^images\[1\]: is None, and there is nothing else to ask about"):
        model.ask([picture(0), None], "what?")
    with pytest.raises(DataError, match=r"^ask: 2 questions about 1 sounds"):
        model.ask(None, ["a?", "b?"], sounds=[wav(200)])
    with pytest.raises(DataError, match=r"^image: this model was trained on sounds alone"):
        model.explain(picture(0))


def test_the_commands_ask_about_sounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_wavs(tmp_path, 2)
    files = [str(tmp_path / f"{number}.wav") for number in range(2)]
    assert main(["ask", str(run()), "--sound", files[0], "how high is it?"]) == 0
    alone = capsys.readouterr().out
    assert main(["ask", str(run()), "--sound", files[0], "--sound", files[1], "how high is it?"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{files[0]}: {alone.strip()}"
    assert main(["caption", str(run()), "--sound", files[0], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[0]
    assert (found["image"], found["sound"]) == (None, files[0])
    assert main(["ask", str(run()), "how high is it?"]) == 2
    assert capsys.readouterr().err == "IMAGE: there is none, and no --sound; name what is asked about\n"
    assert main(["ask", str(run()), "--sound", "gone.wav", "what?"]) == 2
    assert capsys.readouterr().err == "gone.wav: there is no such file; give the path of a sound file\n"
    assert main(["eval", str(run()), "--predictions", str(tmp_path / "p.jsonl")]) == 0
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == NUM


def test_a_chat_is_about_a_sound_until_another_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: AnsweringModel
) -> None:
    write_wavs(tmp_path, 2)
    files = [str(tmp_path / f"{number}.wav") for number in range(2)]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"how high is it?\n/sound {files[1]}\nhow high is it?\n"))
    assert main(["chat", str(run()), "--sound", files[0]]) == 0
    expected = [answer or "(no answer)" for answer in model.ask(None, "how high is it?", sounds=files)]
    assert capsys.readouterr().out.splitlines() == expected
