"""Retrieval with sounds: against the plain metric, with equal sounds, gaps, and data without any image."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from fake_model import COLOURS, ColourModel, ListSource
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.data.audio import Clip
from impresa.data.sample import Sample
from impresa.errors import DataError
from impresa.evaluation.results import Evaluation, read_evaluation, save_evaluation
from impresa.evaluation.retrieval import CHANCE, retrieval_metrics
from impresa.reports.html import render_report
from impresa.reports.terminal import print_results
from impresa.tasks.alignment.evaluate import evaluate
from impresa.tasks.alignment.sound import SOUNDS_AT_A_TIME

WITH_AUDIO = ExperimentConfig(audio_encoder=EncoderConfig(backbone="spectrogram"))
DIRECTIONS = ["audio_to_text", "text_to_audio", "audio_to_image", "image_to_audio"]


@dataclass
class AudioModel(ColourModel):
    """Embeds a sound as the colour in its first three samples."""

    config: ExperimentConfig = WITH_AUDIO
    clip_counts: list[int] = field(default_factory=list)

    def encode_audio(self, sounds: list[Clip], *, batch_size: int = 32, device: object = None) -> Tensor:
        self.clip_counts.append(len(sounds))
        return torch.stack([sound.samples for sound in sounds])


def sound(name: str, shift: float = 0.0) -> Clip:
    return Clip(torch.tensor(COLOURS[name]).float() / 128 - 1 + shift, 16_000)


def sample(index: int, *, image: bool = True, audio: bool = True, text: bool = True, shift: float = 0.01) -> Sample:
    name = list(COLOURS)[index % len(COLOURS)]
    shifted = tuple(min(255, value + index // len(COLOURS)) for value in COLOURS[name])
    return Sample(
        id=f"square-{index}",
        image=Image.new("RGB", (8, 8 + index), shifted) if image else None,  # each of its own, whatever its colour
        captions=(f"{name} square {index}",) if text else (),
        audio=sound(name, shift * (index // len(COLOURS))) if audio else None,
    )


def test_sounds_of_two_rates_are_two_sounds() -> None:
    one = sample(0)
    other = replace(one, id="slower", captions=("red square slower",), audio=replace(one.audio, rate_hz=8_000))
    result = evaluate(AudioModel(), ListSource([one, replace(one, id="same"), other]), data="squares")
    assert result.sound["text_to_audio"]["model"].num_candidates == 2


def test_every_pair_with_sound_equals_the_plain_metric() -> None:
    samples = [sample(i) for i in range(70)]
    model = AudioModel()
    result = evaluate(model, ListSource(list(samples)), data="squares")
    assert list(result.sound) == DIRECTIONS
    assert result.num_sounds == 70
    assert max(model.clip_counts) == SOUNDS_AT_A_TIME
    sounds = torch.stack([item.audio.samples for item in samples])
    captions = [item.captions[0] for item in samples]
    with_text = retrieval_metrics(sounds, model.encode_text(captions), torch.arange(70), captions)
    images = torch.stack([model.preprocessing.image(item.image) for item in samples])
    with_image = retrieval_metrics(sounds, images, torch.arange(70), [str(i) for i in range(70)])
    assert result.sound["audio_to_text"]["model"] == with_text.image_to_text
    assert result.sound["text_to_audio"]["model"] == with_text.text_to_image
    assert result.sound["audio_to_image"]["model"] == with_image.image_to_text
    assert result.sound["image_to_audio"]["model"] == with_image.text_to_image
    assert result.sound["audio_to_image"][CHANCE].recall_at[1] == pytest.approx(1 / 70)
    assert result.retrieval == evaluate(ColourModel(), ListSource(list(samples)), data="squares").retrieval


def test_equal_sounds_are_one_candidate() -> None:
    samples = [sample(i, shift=0.0) for i in range(12)]  # six colours, each in two sounds
    result = evaluate(AudioModel(), ListSource(list(samples)), data="squares")
    assert result.num_sounds == 12
    found = result.sound["image_to_audio"]["model"]
    assert (found.num_queries, found.num_candidates, found.recall_at[1]) == (12, 6, 1.0)
    assert result.sound["audio_to_image"]["model"].num_queries == 6


def test_one_row_per_caption_is_one_sample_with_sound_too() -> None:
    vision = EncoderConfig(use_mrl=True, mrl_dimensions=(2,))
    model = AudioModel(config=replace(WITH_AUDIO, vision_encoder=vision))
    lists = [replace(sample(i), captions=tuple(f"{sample(i).captions[0]} {n}" for n in range(5))) for i in range(12)]
    lists[3] = replace(lists[3], image=None)
    lists[4] = replace(lists[4], audio=None)
    rows = [replace(one, id=f"{one.id}-{text}", captions=(text,)) for one in lists for text in one.captions]
    listed, by_row = (evaluate(model, ListSource(list(some)), data="squares") for some in (lists, rows))
    assert by_row == listed
    assert (by_row.num_sounds, by_row.sound["image_to_audio"]["model"].num_queries) == (11, 10)


def test_each_pair_is_judged_on_the_samples_that_have_both() -> None:
    gaps = [{"image": False}, {"audio": False}, {"text": False}]
    samples = [sample(i, **gaps[i]) if i < 3 else sample(i) for i in range(6)]
    result = evaluate(AudioModel(), ListSource(list(samples)), data="squares", train_source=ListSource(list(samples)))
    assert (result.num_images, result.num_texts, result.num_sounds) == (5, 4, 5)
    assert result.bad_samples == ()
    sizes = {name: (rows["model"].num_queries, rows["model"].num_candidates) for name, rows in result.sound.items()}
    assert sizes == dict.fromkeys(DIRECTIONS, (4, 4))
    assert result.sound["audio_to_image"]["model"].recall_at[1] == 1.0


def test_sounds_with_captions_alone_can_be_evaluated() -> None:
    samples = [sample(i, image=False) for i in range(6)]
    result = evaluate(AudioModel(), ListSource(list(samples)), data="sounds")
    assert list(result.sound) == DIRECTIONS[:2]
    assert (result.num_images, result.retrieval) == (0, None)
    assert "audio → text" in shown(result)
    with pytest.raises(DataError, match="no usable sample"):
        evaluate(ColourModel(), ListSource(list(samples)), data="sounds")


def test_matryoshka_dimensions_are_evaluated_with_sound_too() -> None:
    vision = EncoderConfig(use_mrl=True, mrl_dimensions=(2, 1))
    model = AudioModel(config=replace(WITH_AUDIO, vision_encoder=vision))
    result = evaluate(model, ListSource([sample(i) for i in range(12)]), data="squares")
    names = ["model", "first 2 dimensions", "first 1 dimensions", CHANCE]
    assert all(list(rows) == names for rows in result.sound.values())
    assert result.sound["audio_to_text"]["first 1 dimensions"] != result.sound["audio_to_text"]["model"]


def shown(evaluation: Evaluation) -> str:
    stream = io.StringIO()
    print_results(evaluation, Console(file=stream, width=80))
    return stream.getvalue()


def test_tables_and_files_show_sound(tmp_path: Path) -> None:
    result = evaluate(AudioModel(), ListSource([sample(i) for i in range(12)]), data="squares")
    text = shown(result)
    assert "12 sounds" in text
    assert [line.strip() for line in text.splitlines() if "→" in line] == [
        *("image → text", "text → image") * 2,  # R@k, and the ranks
        *("audio → text", "text → audio", "audio → image", "image → audio") * 2,
    ]
    save_evaluation(result, tmp_path)
    assert read_evaluation(tmp_path) == result
    page = render_report(tmp_path)
    assert "Retrieval with sound" in page
    _, table = page.split("<h2>Retrieval with sound</h2>")
    headings = re.findall(r">(\w+ → \w+)</th>", table.partition("</table>")[0])
    assert headings == [direction.replace("_to_", " → ") for direction in DIRECTIONS]
    assert table.partition("</table>")[0].count('<th scope="row">chance</th>') == len(DIRECTIONS)


def test_a_model_without_an_audio_encoder_reports_no_sound(tmp_path: Path) -> None:
    result = evaluate(ColourModel(), ListSource([sample(i) for i in range(12)]), data="squares")
    assert (result.sound, result.num_sounds) == ({}, 0)
    assert "audio" not in shown(result)
    save_evaluation(result, tmp_path)
    assert "with sound" not in render_report(tmp_path)
