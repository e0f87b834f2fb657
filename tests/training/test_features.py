"""Training on kept features: the same as without them, no image decoded twice, and never a row of something else."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from impresa.config import ExperimentConfig
from impresa.config.encoder import EncoderConfig
from impresa.config.rules import check_experiment
from impresa.config.runs import prepare
from impresa.data.sources import row_files, shapes
from impresa.errors import ConfigError, DataError
from impresa.run_dir.lock import locked
from impresa.training import features
from impresa.training.distributed import Group
from impresa.training.features import FeatureKeeper
from impresa.training.loop import Training, steps_of, train_step, validate
from impresa.training.parts import Parts, build_parts
from impresa.training.processes import GracefulStop, TrainingInterrupted
from impresa.training.run import set_up, train
from pictures import numbered, write_jsonl
from run_metrics import interrupt_after, numbers
from sounds_on_disk import wav
from tiny_hub import clip
from tiny_run import HEARING, dry_run_of, finished_run, without_charts
from tiny_run import tiny_experiment as tiny
from tiny_vlm import tiny_vlm_on
from two_processes import in_two_processes

COMMAND = ["impresa", "train"]
STILL = ("dataset.augmentation=none", "vision_encoder.freeze=true", "trainer.accumulate_grad_batches=1")
CPU = Group(torch.device("cpu"))
Step = dict[str, float]


def kept_in(folder: Path) -> str:
    return f"dataset.cache_features={folder}"


def set_up_with(config: ExperimentConfig, group: Group = CPU) -> tuple[Parts, Training]:
    """A training that has its features, where the config asks for them."""
    config = prepare(config)
    parts = build_parts(config, None, world_size=group.world_size)
    training = set_up(config, parts, group)
    if parts.data.kept_sources:
        keeper = FeatureKeeper(config, parts.preprocessing.image, training.state, group, GracefulStop())
        keeper.keep(parts.data.kept_sources)
    return parts, training


def trained(config: ExperimentConfig, group: Group = CPU, steps: int = 8) -> tuple[list[Step], dict[str, float]]:
    """What each of some steps logs, and a validation after them."""
    _, training = set_up_with(config, group)
    logs = [
        {name: float(value) for name, value in train_step(training, batches).items()}
        for batches in islice(steps_of(training.train_loader, 1), steps)
    ]
    return logs, validate(training)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A word for each image that is drawn or decoded in this process."""
    seen: list[str] = []
    for module, name in ((shapes, "render"), (row_files, "decode_image")):
        before = getattr(module, name)
        monkeypatch.setattr(module, name, partial(_noted, seen, before, name))
    return seen


def _noted(seen: list[str], before: Any, name: str, *given: Any) -> Any:
    seen.append(name)
    return before(*given)


@pytest.fixture
def notes(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO, "impresa")
    return lambda: [record.getMessage() for record in caplog.records if "cache_features" in record.getMessage()]


def photos(folder: Path, *overrides: str) -> ExperimentConfig:
    """Ten pictures in a folder, for the tower of the tiny run."""
    write_jsonl(folder, numbered(10))
    own = (f"dataset.train_path={folder}", "dataset.val_fraction=0.2", "dataset.batch_size=4")
    return tiny(*own, *STILL, *overrides)


def on_a_run() -> ExperimentConfig:
    """An alignment in which the image tower of a finished run is kept as it is."""
    config = tiny("dataset.augmentation=none", "trainer.accumulate_grad_batches=1")
    return replace(config, vision_encoder=EncoderConfig(checkpoint=str(finished_run()), embed_dim=16))


CASES = {
    "a frozen backbone": lambda: tiny(*STILL),
    "tokens for attention pooling": lambda: tiny(*STILL, "vision_encoder.use_attention_pooling=true"),
    "memory": lambda: tiny(*STILL, "vision_encoder.memory.enabled=true"),
    "a tower of a run": on_a_run,
    "positive duplicates": lambda: tiny(*STILL, "losses.duplicates=positive"),
    "bfloat16": lambda: tiny(*STILL, "optimization.precision=bf16-true"),
    "mixed": lambda: tiny(*STILL, "optimization.precision=bf16-mixed"),
    "a vision-language model": lambda: tiny_vlm_on(finished_run(), "trainer.epochs=4"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_the_same_within_half_precision(name: str, tmp_path: Path) -> None:
    config = CASES[name]()
    plain, kept = (trained(one) for one in (config, replaced(config, tmp_path)))
    tolerance = 2e-2 if "bfloat16" in name or name == "mixed" else 2e-3
    for one, two in zip(plain[0], kept[0], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=tolerance)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=10 * tolerance)
    assert kept[1]["val_loss"] == pytest.approx(plain[1]["val_loss"], rel=tolerance)
    assert (kept != plain) == (name != "bfloat16")  # they do pass through half precision, which holds those numbers


def replaced(config: ExperimentConfig, folder: Path | None) -> ExperimentConfig:
    value = None if folder is None else str(folder)
    return replace(config, dataset=replace(config.dataset, cache_features=value))


def test_no_image_is_decoded_after_the_first_time(tmp_path: Path, decoded: list[str], notes: Any) -> None:
    config = photos(tmp_path / "photos", kept_in(tmp_path / "kept"))
    first = trained(config)
    assert len(decoded) == 10
    assert trained(config) == first
    assert len(decoded) == 10
    started, encoded, again = notes()
    assert "0 images are kept already (0.0 MiB in " in started
    assert "10 are encoded first, 0.0 MiB at 60 bytes each" in started
    assert "10 images encoded in " in encoded
    assert "10 images are kept already" in again
    assert again.endswith("0 are encoded first")


def test_a_vision_language_model_draws_no_scene_again(tmp_path: Path, decoded: list[str]) -> None:
    config = tiny_vlm_on(finished_run(), kept_in(tmp_path))
    _, training = set_up_with(config)
    assert len(decoded) == 24
    (batch,) = next(steps_of(training.train_loader, 1))
    assert batch.image is None
    assert batch.features.dtype is torch.float16
    trained(config)
    assert len(decoded) == 48  # the embedded scenes are drawn once in each run, to see that they are the same


def test_a_changed_and_an_added_image_are_encoded_anew_and_no_other(tmp_path: Path, decoded: list[str]) -> None:
    config = photos(tmp_path / "photos", kept_in(tmp_path / "kept"))
    trained(config)
    changed = tmp_path / "photos" / "3.png"
    before = changed.stat()
    changed.write_bytes((tmp_path / "photos" / "4.png").read_bytes()[:-1] + b"\x83")
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    with (tmp_path / "photos" / "metadata.jsonl").open("a") as table:
        table.write('{"image": "10.png", "caption": "one more"}\n')
    shutil.copy(tmp_path / "photos" / "5.png", tmp_path / "photos" / "10.png")  # equal to one that is there
    decoded.clear()
    kept = trained(config)
    assert len(decoded) == 1
    plain = trained(replaced(config, None))
    assert kept[0][-1]["loss"] == pytest.approx(plain[0][-1]["loss"], rel=2e-3)


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "dataset.resize=squash",
        "vision_encoder.activation=quick_gelu",
        "vision_encoder.num_heads=4",
        "vision_encoder.use_attention_pooling=true",
        "optimization.precision=bf16-mixed",
    ],
)
def test_other_weights_structure_or_preprocessing_are_served_nothing_of_this(change: str, tmp_path: Path) -> None:
    trained(photos(tmp_path / "photos", kept_in(tmp_path / "kept")), steps=1)
    other = photos(tmp_path / "photos", change, kept_in(tmp_path / "kept"))
    trained(other, steps=1)
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_what_is_trained_leaves_the_key_alone(tmp_path: Path) -> None:
    for change in (
        "optimization.lr=1e-2",
        "text_encoder.depth=2",
        "dataset.batch_size=3",
        "vision_encoder.embed_dim=8",
    ):
        both = [change, "text_encoder.embed_dim=8"] if "embed_dim" in change else [change]
        trained(photos(tmp_path / "photos", *both, "losses.duplicates=ignore", kept_in(tmp_path / "kept")), steps=1)
    assert len(list((tmp_path / "kept").iterdir())) == 2  # the width of the embedding draws other weights


def test_a_bad_image_stays_a_bad_sample(tmp_path: Path) -> None:
    config = photos(tmp_path / "photos", kept_in(tmp_path / "kept"), "dataset.max_bad_fraction=0.5")
    (tmp_path / "photos" / "3.png").write_bytes(b"no image")
    plain, kept = trained(replaced(config, None)), trained(config)
    assert [step["loss"] for step in kept[0]] == pytest.approx([step["loss"] for step in plain[0]], rel=2e-3)


def test_with_sounds_a_sample_may_lack_an_image(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    config = photos(folder, *HEARING)
    for number in range(10):
        (folder / f"{number}.wav").write_bytes(wav(440))
    rows = [{"audio": f"{number}.wav", "caption": f"number {number}"} for number in range(5)]
    write_jsonl(folder, [*rows, *({**row, "image": f"{number}.png"} for number, row in enumerate(rows))])
    plain, kept = trained(config), trained(replaced(config, tmp_path / "kept"))
    assert [step["loss"] for step in kept[0]] == pytest.approx([step["loss"] for step in plain[0]], rel=2e-3)


def test_workers_read_what_the_main_process_reads(tmp_path: Path) -> None:
    config = photos(tmp_path / "photos", kept_in(tmp_path / "kept"))
    found = trained(config)
    shutil.rmtree(tmp_path / "kept")
    workers = replace(config, dataset=replace(config.dataset, num_workers=2, pin_memory=False))
    assert trained(workers) == found


def test_a_resumed_run_equals_a_straight_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_charts(monkeypatch)
    config = tiny(*STILL, kept_in(tmp_path / "kept"), "vision_encoder.memory.enabled=false")
    straight = train(config, tmp_path / "straight", command=COMMAND)
    with monkeypatch.context() as patch:
        interrupt_after(4, patch)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "resumed", command=COMMAND)
    resumed = train(config, tmp_path / "resumed", command=COMMAND, resume=True)
    assert numbers(resumed, "train_loss", "val_loss") == numbers(straight, "train_loss", "val_loss")


def _losses_of(rank: int, config: ExperimentConfig) -> list[float]:
    logs, metrics = trained(config, Group(torch.device("cpu"), rank, 2), steps=4)
    return [step["loss"] for step in logs] + [metrics["val_loss"]]


def test_two_processes_share_the_work_and_see_all_of_it(tmp_path: Path) -> None:
    config = photos(
        tmp_path / "photos", kept_in(tmp_path / "kept"), "losses.gather_distributed=true", "text_encoder.drop_rate=0"
    )
    halved = replace(config, dataset=replace(config.dataset, batch_size=2, eval_batch_size=4))
    (tmp_path / "rendezvous").mkdir()
    one, two = in_two_processes(_losses_of, tmp_path / "rendezvous", halved)
    (store,) = (tmp_path / "kept").iterdir()
    assert [path.stat().st_size for path in sorted(store.glob("*.keys"))] == [5 * 28, 5 * 28]
    logs, metrics = trained(
        replaced(replace(config, dataset=replace(config.dataset, eval_batch_size=4)), None), steps=4
    )
    alone = [step["loss"] for step in logs] + [metrics["val_loss"]]
    assert one == two == pytest.approx(alone, rel=2e-3)


def test_a_stopped_run_keeps_what_it_has_encoded(
    tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = prepare(photos(tmp_path / "photos", kept_in(tmp_path / "kept")))
    parts = build_parts(config, None)
    stop = GracefulStop()
    keeper = FeatureKeeper(config, parts.preprocessing.image, set_up(config, parts, CPU).state, CPU, stop)
    encode = features.FrozenPart.encode

    def press(*given: Any) -> torch.Tensor:
        stop.requested = True
        return encode(*given)

    with monkeypatch.context() as patch:
        patch.setattr(features.FrozenPart, "encode", press)
        with pytest.raises(TrainingInterrupted):
            keeper.keep(parts.data.kept_sources)
    assert len(decoded) == 4  # one batch
    trained(config)
    assert len(decoded) == 10


def test_another_training_waits_while_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: Any) -> None:
    config = photos(tmp_path / "photos", kept_in(tmp_path / "kept"))
    trained(config, steps=1)
    (store,) = (tmp_path / "kept").iterdir()
    held = locked(store, "{}")
    held.__enter__()
    free = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: held.__exit__(None, None, None))
    monkeypatch.setattr(features, "time", free)
    trained(config, steps=1)
    assert any("waiting, for" in note for note in notes())


def test_a_full_disk_is_told_before_anything_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(DataError, match=r"cache_features: .* are added, and the disk of .* has 0\.0 MiB left; name"):
        trained(photos(tmp_path / "photos", kept_in(tmp_path / "kept")))


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    assert "features:" in dry_run_of(photos(tmp_path / "photos", kept_in(tmp_path / "kept")))
    assert not (tmp_path / "kept").exists()


REFUSED = {
    "draws new ones; set that to none": ["vision_encoder.freeze=true", "dataset.augmentation=clip"],
    "set vision_encoder.freeze=true": ["dataset.augmentation=none"],
    "unfreeze_last trains blocks": [*STILL, "vision_encoder.unfreeze_last=1"],
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_would_make_it_wrong_is_refused_with_the_reason(reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny(*REFUSED[reason], kept_in(tmp_path))
    assert len(caught.value.lines) == 1
    assert reason in caught.value.lines[0].replace("`", "")
    assert caught.value.lines[0].startswith("dataset.cache_features: ")


def test_adapters_are_refused(tmp_path: Path) -> None:
    from impresa.config.decoder import TowerLoraConfig

    config = replaced(tiny("dataset.augmentation=none"), tmp_path)
    tower = replace(config.vision_encoder, backbone=str(clip(tmp_path / "clip")), lora=TowerLoraConfig())
    (fault,) = (f for f in check_experiment(replace(config, vision_encoder=tower)) if f.key == "dataset.cache_features")
    assert "`vision_encoder.lora` adapts it" in fault.text


def test_several_squares_of_a_sample_are_refused(tmp_path: Path) -> None:
    for key in ("decoder.tiles", "dataset.max_images"):
        with pytest.raises(ConfigError) as caught:
            tiny_vlm_on(finished_run(), kept_in(tmp_path), f"{key}=2")
        assert f"{key} is 2" in caught.value.lines[0].replace("`", "")


def test_false_of_older_configs_is_null() -> None:
    assert tiny("dataset.cache_features=false").dataset.cache_features is None
    with pytest.raises(ConfigError, match="cache_features"):
        tiny("dataset.cache_features=true")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_a_killed_run_leaves_nothing_wrong(tmp_path: Path, decoded: list[str]) -> None:
    config = photos(tmp_path / "photos", kept_in(tmp_path / "kept"))
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from impresa.training import features\n"
        "import test_features as t\n"
        "encode, calls = features.FrozenPart.encode, []\n"
        "def the_third_stands(*given):\n"
        "    calls.append(given)\n"
        "    if len(calls) == 3:\n"
        "        Path(sys.argv[3]).touch()\n"
        "        time.sleep(600)\n"
        "    return encode(*given)\n"
        "features.FrozenPart.encode = the_third_stands\n"
        "t.trained(t.photos(Path(sys.argv[1]), t.kept_in(sys.argv[2]), 'dataset.batch_size=2'))\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path])
    words = [sys.executable, "-c", script, *(str(tmp_path / name) for name in ("photos", "kept", "third"))]
    with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": path}) as process:
        while not (tmp_path / "third").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    kept = trained(config)
    assert len(decoded) == 6  # two batches of two are kept
    plain = trained(replaced(config, None))
    assert [step["loss"] for step in kept[0]] == pytest.approx([step["loss"] for step in plain[0]], rel=2e-3)
