"""`print(model)`: each part with its width, what comes out, and the run."""

from __future__ import annotations

import impresa
from impresa.config import ExperimentConfig, load_experiment
from impresa.data.sources import open_source, reading_of
from impresa.tasks import task_of
from tiny_run import TINY, finished_run, tiny_experiment
from tiny_vlm import finished_vlm, tiny_vlm


def described(config: ExperimentConfig) -> list[str]:
    task = task_of(config)
    preprocessing = task.prepare(open_source(config.dataset, "train", reading_of(config)))
    return str(task.use(task.build(preprocessing), preprocessing, "cpu")).splitlines()


def test_an_alignment_names_its_run_towers_and_widths() -> None:
    model = impresa.load(finished_run(), "cpu")
    size = sum(parameter.numel() for parameter in model.model.parameters())
    assert str(model).splitlines() == [
        f"EmbeddingModel 'shapes' of {finished_run()}",
        "  image       vit, width 16, 1 block, images of 16 px, 2 memory tokens",
        "  text        transformer, width 16, 1 block, texts of up to 48 tokens",
        "  embeddings  16 numbers",
        f"  size        {size:,} parameters on cpu",
    ]


def test_an_answering_model_names_its_run_and_that_of_its_encoder() -> None:
    lines = str(impresa.load(finished_vlm(), "cpu")).splitlines()
    assert lines[0] == f"AnsweringModel 'shapes_vqa_trm' of {finished_vlm()}"
    assert lines[1].endswith(f"2 memory tokens, from {finished_run()}")
    assert lines[2] == "  decoder     trm, width 16, reads tokens of the towers"


def test_dimensions_depths_and_a_model_without_a_run() -> None:
    lines = described(
        tiny_experiment("vision_encoder.use_mrl=true", "vision_encoder.mrl_dimensions=[8,4]", "text_encoder.depth=2")
    )
    assert lines[0] == "EmbeddingModel 'shapes'"
    assert "width 16, 2 blocks" in lines[2]
    assert "  embeddings  16 numbers; Matryoshka: 8 and 4" in lines


def test_a_third_modality_and_its_fusion() -> None:
    tower = ("dim=16", "depth=1", "num_heads=2", "embed_dim=16", "patch_size=32", "audio_max_seconds=0.5")
    pairs = "losses.pairs=[image-text,text-audio,image+audio-text]"
    plain = (setting for setting in TINY if "memory" not in setting)
    settings = (*plain, "vision_encoder.memory.enabled=false", *(f"audio_encoder.{setting}" for setting in tower))
    lines = described(load_experiment("shapes_audio", [*settings, pairs]))
    assert "  audio       spectrogram, width 16, 1 block, sounds of up to 0.5 s" in lines
    assert "  fusion      image and sound, concat" in lines
    assert len(lines) <= 12


def test_the_class_token_and_a_projector_of_its_own_are_named() -> None:
    lines = described(tiny_vlm("decoder.prefix=cls_patches", "fusion.projector=mlp"))
    assert lines[2] == "  decoder     trm, width 16, reads cls_patches of the towers"
    assert lines[3] == "  fusion      mlp projector"
