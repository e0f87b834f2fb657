from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import impresa
from forged_runs import forge, refusal
from impresa.data.images import ImageTransform
from impresa.data.preprocessing import Preprocessing
from impresa.data.tokenizers import train_tokenizer
from impresa.errors import CheckpointError
from impresa.run_dir.load import read_run_config
from impresa.run_dir.save import save_run
from impresa.run_dir.weights import read_weights, write_weights
from impresa.tasks.alignment.build import build_alignment
from tiny_run import copy_of_run, finished_run, tiny_experiment


def shift_golden(run_dir: Path, device: str) -> None:
    path = run_dir / "golden.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = {**file.metadata(), "device": device}
    tensors["image_embeddings"] = tensors["image_embeddings"].roll(1, dims=1)
    save_file(tensors, path, metadata)
    forge(run_dir, "golden.safetensors")


def test_loading_imports_nothing_of_the_training() -> None:
    code = (
        "import sys, impresa; impresa.load(sys.argv[1], 'cpu');"
        "print([m for m in sys.modules if m.startswith(('lightning', 'impresa.training', 'wandb', 'torch._dynamo'))])"
    )
    done = subprocess.run([sys.executable, "-c", code, finished_run()], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_loading_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    impresa.load(finished_run(), "cpu")
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_a_moved_run_still_loads(tmp_path: Path) -> None:
    moved = copy_of_run(tmp_path / "elsewhere")
    here, there = impresa.load(moved, "cpu"), impresa.load(str(finished_run()), "cpu")
    assert torch.equal(here.encode_text(["a red circle"]), there.encode_text(["a red circle"]))


def test_golden_inputs_are_raw_and_few() -> None:
    tensors = load_file(finished_run() / "golden.safetensors")
    assert tensors["image_0"].dtype == torch.uint8
    assert len(tensors["image_embeddings"]) == len(tensors["text_embeddings"]) == 4


def test_no_folder_and_no_run(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "none")
    assert "is no run directory" in refusal(tmp_path)


def test_an_unfinished_run_offers_the_mend(tmp_path: Path) -> None:
    run_dir = copy_of_run(tmp_path / "run")
    (run_dir / "manifest.json").unlink()
    assert f"impresa train --output-dir {run_dir} --resume" in refusal(run_dir)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer/tokenizer.json", "preprocessing.json", "golden.safetensors"]
)
def test_a_changed_or_missing_file_is_named(name: str, tmp_path: Path) -> None:
    run_dir = copy_of_run(tmp_path / "run")
    content = (run_dir / name).read_bytes()
    (run_dir / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert f"{run_dir / name}: is not what the training wrote" in refusal(run_dir)
    (run_dir / name).unlink()
    assert f"{run_dir / name}: is missing" in refusal(run_dir)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer/tokenizer.json", "preprocessing.json", "golden.safetensors"]
)
def test_a_damaged_file_with_a_fitting_checksum_is_refused_too(name: str, tmp_path: Path) -> None:
    run_dir = copy_of_run(tmp_path / "run")
    (run_dir / name).write_bytes((run_dir / name).read_bytes()[:40])
    forge(run_dir, name)
    assert "restore the run" in refusal(run_dir)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": 1}', "[" * 100_000, '{"format": 1, "sha256": []}', '{"format": true, "sha256": {}}']
)
def test_a_damaged_manifest(text: str, tmp_path: Path) -> None:
    run_dir = copy_of_run(tmp_path / "run")
    (run_dir / "manifest.json").write_text(text)
    assert "manifest.json: " in (message := refusal(run_dir))
    assert "restore the run from a copy" in message


def test_a_later_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    run_dir = copy_of_run(tmp_path / "run")
    (run_dir / "manifest.json").write_text('{"format": 99, "sha256": {}}')
    assert "format 99" in refusal(run_dir)


def test_a_broken_config_is_told_with_its_key(tmp_path: Path) -> None:
    run_dir = copy_of_run(tmp_path / "run")
    text = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(text.replace("patch_size: 8", "patch_size: none"))
    assert "vision_encoder.patch_size" in refusal(run_dir)


def test_a_config_of_another_size_does_not_fit_the_weights(tmp_path: Path) -> None:
    run_dir = copy_of_run(tmp_path / "run")
    text = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(text.replace("num_memory_tokens: 2", "num_memory_tokens: 3"))
    assert "restore the run" in refusal(run_dir)


def test_embeddings_that_drifted_are_an_error_on_the_same_device(tmp_path: Path) -> None:
    run_dir = copy_of_run(tmp_path / "run")
    shift_golden(run_dir, device="cpu")
    assert "outputs differ from those of the training" in refusal(run_dir)


def test_embeddings_that_drifted_are_a_warning_on_another_device(tmp_path: Path) -> None:
    run_dir = copy_of_run(tmp_path / "run")
    shift_golden(run_dir, device="tpu")
    with pytest.warns(UserWarning, match="which was finished on tpu; this is cpu"):
        impresa.load(run_dir, "cpu")


def test_memory_that_runs_out_in_a_check_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    run_dir = copy_of_run(tmp_path / "run")
    monkeypatch.setattr("impresa.tasks.alignment.embedder.EmbeddingModel.golden_pairs", full)
    with pytest.raises(torch.OutOfMemoryError):
        impresa.load(run_dir, "cpu")


def test_a_config_that_cannot_be_read_is_named_once(tmp_path: Path) -> None:
    path = copy_of_run(tmp_path / "run") / "config.yaml"
    text = path.read_text()
    for broken in (text.replace("name: shapes", "name: ${oc.env:HOME}"), "a: [", "- a"):
        path.write_text(broken)
        with pytest.raises(CheckpointError) as caught:
            impresa.load(path.parent, "cpu")
        assert str(caught.value).count(str(path)) == 1


def rewrite_golden(run_dir: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Other tensors in the golden file of a run, which says that it was finished on another kind of device."""
    path = run_dir / "golden.safetensors"
    with safe_open(path, "pt") as file:
        metadata = {**file.metadata(), "device": "tpu"}
    save_file(change(load_file(path)), path, metadata)
    forge(run_dir, "golden.safetensors")


EMPTY = {"image_embeddings": torch.zeros(0, 16), "text_embeddings": torch.zeros(0, 16)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stored: {**stored, "text_embeddings": stored["text_embeddings"] * torch.nan}, "no finite numbers"),
        (lambda stored: {**stored, "image_embeddings": stored["image_embeddings"] / 0}, "no finite numbers"),
        (lambda stored: {**stored, "image_0": torch.zeros(2, 2)}, r"is damaged \(image_0: shape \(2, 2\) of float32"),
        (lambda stored: {**stored, "text_embeddings": torch.zeros(3, 5)}, "is damaged"),
        (lambda stored: {**stored, "image_0": torch.zeros(3, 2, 2)}, r"image_0: .*and no uint8"),
        (
            lambda stored: {**stored, "image_0": torch.zeros(3, 33, 2, dtype=torch.uint8)},
            r"image_0: shape \(3, 33, 2\)",
        ),
        (lambda stored: {**stored, "image_embeddings": torch.zeros(10**9, 0)}, r"image_embeddings: shape"),
        (
            lambda stored: {**stored, "text_embeddings": torch.zeros(4, 16, dtype=torch.int64)},
            "text_embeddings: .*int64",
        ),
        (lambda stored: {"image_embeddings": stored["image_embeddings"]}, "is damaged"),
        (lambda stored: {}, "is damaged"),
    ],
)
def test_golden_inputs_without_meaning_are_damage_on_any_device(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], message: str, tmp_path: Path
) -> None:
    run_dir = copy_of_run(tmp_path / "run")
    rewrite_golden(run_dir, change)
    assert re.search(message, refusal(run_dir))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "its metadata have no device"),
        ({"device": "cpu"}, "its metadata have no texts"),
        ({"device": "cpu", "texts": "[" * 100_000}, "texts: Invalid JSON"),
        ({"device": "cpu", "texts": '{"a": 1}'}, "texts: Input should be a valid"),
        ({"device": "cpu", "texts": "[1, 2, 3, 4]"}, "texts: `0`: Input should be a valid string"),
        ({"device": "cpu", "texts": '["a"]'}, "texts: 1, and 4 outputs"),
    ],
)
def test_golden_metadata_of_another_kind_are_damage(metadata: dict[str, str], message: str, tmp_path: Path) -> None:
    run_dir = copy_of_run(tmp_path / "run")
    path = run_dir / "golden.safetensors"
    save_file(load_file(path), path, metadata)
    forge(run_dir, path.name)
    assert f"golden.safetensors: is damaged ({message}" in refusal(run_dir)


def test_a_golden_file_without_inputs_is_damage_and_none_is_written(tmp_path: Path) -> None:
    run_dir = copy_of_run(tmp_path / "run")
    path = run_dir / "golden.safetensors"
    save_file(EMPTY, path, {"texts": "[]", "device": "cpu"})
    forge(run_dir, path.name)
    assert "golden.safetensors: is damaged (it holds no inputs)" in refusal(run_dir)
    save_file({"image_0": torch.zeros(1)}, path)  # without any metadata
    forge(run_dir, path.name)
    assert "golden.safetensors: is damaged" in refusal(run_dir)
    loaded = impresa.load(finished_run(), "cpu")
    save_run(tmp_path / "again", loaded.model, loaded.config, loaded.preprocessing)
    assert len(load_file(tmp_path / "again/golden.safetensors")["text_embeddings"]) == 1
    impresa.load(tmp_path / "again", "cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    run_dir = copy_of_run(tmp_path / "run")
    weights = load_file(run_dir / "model.safetensors")
    name = next(name for name, tensor in weights.items() if tensor.ndim == 2)
    weights[name][0, 0] = value
    save_file(weights, run_dir / "model.safetensors")
    forge(run_dir, "model.safetensors")
    assert f"model.safetensors: {name} holds numbers that are not finite" in refusal(run_dir)


def test_large_weights_whose_sum_overflows_are_finite(tmp_path: Path) -> None:
    write_weights(tmp_path / "weights", {"a": torch.full((4,), 3e38)})
    assert read_weights(tmp_path / "weights")["a"].isfinite().all()


def test_a_skewed_preprocessing_is_caught(tmp_path: Path) -> None:
    run_dir = copy_of_run(tmp_path / "run")
    text = (run_dir / "preprocessing.json").read_text()
    (run_dir / "preprocessing.json").write_text(text.replace("0.48145466", "0.9"))
    forge(run_dir, "preprocessing.json")
    assert "outputs differ" in refusal(run_dir)


def test_weights_that_share_storage_survive(tmp_path: Path) -> None:
    config = tiny_experiment()
    tokenizer = train_tokenizer(["a red circle", "a blue square"], 300, 16)
    model = build_alignment(config, tokenizer.vocab_size, tokenizer.end_id)
    first, second, *_ = (module for module in model.modules() if isinstance(module, torch.nn.LayerNorm))
    second.weight = first.weight
    torch.nn.init.constant_(first.weight, 1.5)
    save_run(tmp_path / "run", model, config, Preprocessing(tokenizer, ImageTransform(16)))
    loaded = impresa.load(tmp_path / "run", "cpu")
    assert all(torch.equal(loaded.model.state_dict()[name], value) for name, value in model.state_dict().items())


def test_of_a_part_no_other_weights_are_read(tmp_path: Path) -> None:
    table, other = torch.ones(2, 2), torch.zeros(3)
    state = {"a.table": table, "b.head": table, "b.bias": other, "c.large": torch.zeros(5)}
    write_weights(tmp_path / "weights", state)
    part = read_weights(tmp_path / "weights", "b.")
    assert part.keys() == {"b.head", "b.bias"}
    assert torch.equal(part["b.head"], table)
    assert torch.equal(part["b.bias"], other)


def test_a_write_that_fails_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = copy_of_run(tmp_path / "run")
    model = impresa.load(run_dir, "cpu")

    def dies(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("impresa.run_dir.weights.save_file", dies)
    with pytest.raises(OSError, match="disk full"):
        save_run(run_dir, model.model, model.config, model.preprocessing)
    assert "has not finished" in refusal(run_dir)
    assert not list(run_dir.glob(".*.tmp"))


def test_the_config_of_a_run_is_read_without_its_weights() -> None:
    assert read_run_config(finished_run()) == tiny_experiment()
