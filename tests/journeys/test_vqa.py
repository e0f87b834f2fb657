"""A user aligns, puts a language model behind the encoder, trains and asks; then loses what the run came from."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from pyarrow import parquet

import impresa
from impresa.cli.main import main
from impresa.config.decoder import GenerationConfig
from impresa.evaluation.results import read_evaluation
from impresa.run_dir.load import load_answerer
from impresa.run_dir.weights import read_weights
from tiny_run import copy_of_run, without_charts
from tiny_vlm import SMALL, TRM, picture

ROOT = Path(__file__).parents[2]
QUESTIONS = ("how many shapes are there?", "what colour is the shape at the top left?", "is there a red circle?")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: two images, and in `runs/shapes`, where the profiles look for it, a finished alignment."""
    without_charts(monkeypatch)
    monkeypatch.chdir(tmp_path)
    copy_of_run(tmp_path / "runs" / "shapes")
    for number in range(2):
        picture(number).save(f"{number}.png")
    return tmp_path


def train(profile: str, run: str, *overrides: str) -> Path:
    """`impresa train`, small; returns the run."""
    assert main(["train", profile, *SMALL, "decoder.prefix_layer=last", *overrides, "--output-dir", run]) == 0
    return Path(run)


LONGER = ("trainer.epochs=10", "optimization.lr=3e-3", "decoder.generation.max_new_tokens=6")
"""Until a language model that began with random weights no longer ends its answer at once."""


def answers_of(run: Path, generation: GenerationConfig | None = None) -> list[str]:
    """What the run answers from Python to all questions about both images."""
    model = load_answerer(run, "cpu")
    torch.manual_seed(0)
    return [
        answer for question in QUESTIONS for answer in model.ask(["0.png", "1.png"], question, generation=generation)
    ]


def all_answers_of(run: Path) -> list[str]:
    """The likeliest answers, none of them empty, and drawn ones, which differ."""
    answers = answers_of(run)
    assert all(answers)
    answers += answers_of(run, GenerationConfig(max_new_tokens=6, temperature=1.5))
    assert len(set(answers)) > 3
    return answers


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def small_qwen() -> None:
    """What the profile `shapes_vqa_qwen` tells to make first."""
    runpy.run_path(str(ROOT / "examples/small_qwen.py"))["write"](Path("models/small_qwen"), seed=0)


def test_trm_behind_an_alignment(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train("shapes_vqa_trm", "runs/vqa", *TRM)
    before = answers_of(run)
    assert len(set(before)) > 1
    for number, question in enumerate(QUESTIONS):
        capsys.readouterr()
        assert main(["ask", str(run), "0.png", "1.png", question, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert [row["answer"] for row in told] == before[2 * number : 2 * number + 2]
    shutil.rmtree("runs/shapes")
    run = Path(shutil.move(run, "elsewhere"))
    assert answers_of(run) == before
    assert main(["ask", str(run), "0.png", QUESTIONS[0]]) == 0
    assert capsys.readouterr().out == f"{before[0]}\n"
    assert main(["eval", str(run), "--json"]) == 0
    evaluation = read_evaluation(run)
    assert evaluation.answers is not None
    assert evaluation.answers.kinds


def test_a_missing_alignment_names_the_command_that_makes_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("runs/shapes")
    assert main(["train", "shapes_vqa_trm"]) == 2
    mend = f"`impresa train shapes --output-dir runs/shapes` makes it, or name another run (looked in {place})"
    assert capsys.readouterr().err == f"vision_encoder.checkpoint: runs/shapes does not exist; {mend}\n"
    copy_of_run(place / "runs/shapes/20260131-120000")
    assert main(["train", "shapes_vqa_trm"]) == 2
    mend = "holds runs and is none itself; name one, such as runs/shapes/20260131-120000"
    assert capsys.readouterr().err == f"vision_encoder.checkpoint: runs/shapes {mend}\n"


def test_qwen_in_four_bits_with_adapters_and_recursion(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_qwen()
    switches = ("decoder.load_in_4bit=true", "decoder.use_lora=true", "decoder.use_trm_recursion=true")
    recursion = ("decoder.recursion.num_layers=1", "decoder.recursion.num_steps=1", "decoder.recursion.num_cycles=2")
    run = train("shapes_vqa_qwen", "runs/vqa", *switches, *recursion, *LONGER)
    kept = read_weights(run / "model.safetensors")
    decoder = [name for name in kept if name.startswith("decoder.")]
    assert decoder
    assert all("lora_" in name or name.startswith("decoder.recursion.") for name in decoder)
    before = all_answers_of(run)
    shutil.rmtree("runs/shapes")
    assert all_answers_of(run) == before
    capsys.readouterr()
    assert main(["caption", str(run), "0.png", "1.png", "--beams", "2", "--max-new-tokens", "4"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line[:7] for line in told] == ["0.png: ", "1.png: "]
    assert all(len(line) > 7 for line in told)
    # The language model itself is not in the run, and the line says which one it was.
    shutil.rmtree("models")
    assert main(["ask", str(run), "0.png", QUESTIONS[0]]) == 2
    assert capsys.readouterr().err.startswith("decoder.model: models/small_qwen cannot be loaded; ")


def test_projector_first_then_adapters_then_a_model_of_ones_own(place: Path) -> None:
    small_qwen()
    first = train("shapes_vqa_qwen", "runs/first", "decoder.freeze=true")
    aligned = read_weights(first / "model.safetensors")
    assert not any(name.startswith("decoder.") for name in aligned)
    second = train(
        "shapes_vqa_qwen",
        "runs/second",
        f"decoder.init_from={first}",
        "decoder.use_lora=true",
        "decoder.lora.dropout=0",
        *LONGER,
    )
    adapted = read_weights(second / "model.safetensors")
    assert {name for name in adapted if not name.startswith("decoder.")} == aligned.keys()
    frozen = [name for name in aligned if name.startswith("vision_encoder.")]
    assert all(torch.equal(adapted[name], aligned[name]) for name in frozen)
    assert not all(torch.equal(adapted[name], aligned[name]) for name in aligned)
    before = all_answers_of(second)
    shutil.rmtree("runs/shapes")
    shutil.rmtree(first)
    assert all_answers_of(second) == before
    # The adapters become a model of their own, which answers as the run does.
    assert main(["export", str(second), "models/mine", "--merge"]) == 0
    merged = transformers.AutoModelForCausalLM.from_pretrained("models/mine").eval()
    model = impresa.load(second, "cpu")
    greedy = GenerationConfig(max_new_tokens=6)
    expected = model.ask(["0.png", "1.png"], list(QUESTIONS[:2]), generation=greedy)
    assert all(expected)
    merged.generation_config = transformers.GenerationConfig()
    model.model.decoder.model = merged
    assert model.ask(["0.png", "1.png"], list(QUESTIONS[:2]), generation=greedy) == expected


def test_the_second_stage_starts_where_the_first_ended(place: Path) -> None:
    from impresa.config import load_experiment
    from impresa.config.runs import adopt_towers
    from impresa.training.parts import build_parts

    first = train("shapes_vqa_trm", "runs/first", *TRM)
    other_data = ("dataset.shapes.seed=5", "dataset.shapes.num_train=60", "seed=7")
    overrides = [*SMALL, *TRM, "decoder.prefix_layer=last", *other_data]
    alone = build_parts(adopt_towers(load_experiment("shapes_vqa_trm", overrides)), None)
    overrides.append(f"decoder.init_from={first}")
    parts = build_parts(adopt_towers(load_experiment("shapes_vqa_trm", overrides)), None)
    before, now = read_weights(first / "model.safetensors"), parts.model.state_dict()
    assert all(torch.equal(now[name], before[name]) for name in before)
    for started, name in ((parts, "second"), (alone, "alone")):
        started.preprocessing.tokenizer.save(place / name)
    assert contents(place / "second") == contents(first / "tokenizer")
    assert contents(place / "alone") != contents(first / "tokenizer")


def test_digits(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    runpy.run_path(str(ROOT / "examples/digits.py"))["write"](place / "data/digits")
    for split, size in {"train": 256, "val": 32, "test": 16}.items():
        path = place / f"data/digits/{split}.parquet"
        parquet.write_table(parquet.read_table(path).slice(0, size), path)
    short = (
        "trainer.epochs=1",
        "trainer.accelerator=cpu",
        "dataset.num_workers=0",
        "trainer.logging.tensorboard=false",
    )
    assert main(["train", "digits", *short, "--output-dir", "runs/digits"]) == 0
    assert main(["train", "digits_vqa", *short, "--output-dir", "runs/vqa"]) == 0
    kinds = read_evaluation(Path("runs/vqa")).answers.kinds
    assert set(kinds) == {"digit", "parity", "size", "next"}
    capsys.readouterr()
    image = "data/digits/folders/test/0000.png"
    assert main(["ask", "runs/vqa", image, "is this digit even or odd?"]) == 0
    answer = impresa.load("runs/vqa").ask(image, "is this digit even or odd?")
    assert capsys.readouterr().out.strip() == (answer or "(no answer)")
