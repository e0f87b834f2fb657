"""A run's hash: what changes it, and what must not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import impresa
from impresa.ablation.identity import WITHOUT_EFFECT, code_version, content, data_fingerprint, identity
from impresa.config import ExperimentConfig, load_experiment
from impresa.config.tree import leaves, to_tree
from impresa.config.validate import validate
from impresa.run_dir.claim import MAY_CHANGE
from impresa.run_dir.layout import CONFIG, ENVIRONMENT, MANIFEST

CAPTIONS = "image,caption\na.png,a dog\nb/c.png,a cat\n"


def hash_of(*overrides: str) -> str:
    return identity(load_experiment("shapes", overrides), "code", "data")


def print_of(*overrides: str) -> str:
    return data_fingerprint(load_experiment("shapes", overrides))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of data; nothing reads the images."""
    folder = tmp_path / "data"
    (folder / "b").mkdir(parents=True)
    for name, text in {"a.png": "a", "b/c.png": "c", "captions.csv": CAPTIONS, "notes.md": "n", ".hidden": "h"}.items():
        (folder / name).write_text(text)
    return folder


SAME = [
    *("name=other", "labels.tags=[a]", "labels.description=b", "dataset.num_workers=1", "dataset.max_bad_fraction=0.5"),
    *("trainer.logging.project=p", "trainer.logging.tensorboard=false", "trainer.logging.log_interval=3"),
    *("trainer.checkpoint.save_last=false", "trainer.checkpoint.filename={step}"),
]
OTHER = [
    *("seed=1", "trainer.epochs=7", "trainer.max_steps=5", "trainer.logging.eval_interval=7", "trainer.devices=2"),
    *("trainer.checkpoint.monitor=val_recall", "trainer.checkpoint.save_top_k=0", "dataset.batch_size=32"),
    *("optimization.precision=bf16-mixed", "trainer.accelerator=cpu", "losses.row_chunk=8"),
]


def test_labels_and_how_the_machine_works_do_not_change_a_run_and_all_else_does() -> None:
    plain = hash_of()
    assert len(plain) == 16
    assert int(plain, 16)
    assert plain == hash_of()
    assert {hash_of(override) for override in SAME} == {plain}
    others = [hash_of(override) for override in OTHER]
    assert len({plain, *others}) == 1 + len(others)
    assert (
        identity(load_experiment("shapes"), "other", "data") != plain != identity(load_experiment("shapes"), "code", "")
    )


def test_every_key_counts_unless_it_is_known_not_to() -> None:
    config = load_experiment("shapes_audio", ["decoder.type=trm"])
    keys = {key for key, _ in leaves(to_tree(config))}
    assert keys - content(config).keys() == WITHOUT_EFFECT
    assert keys >= WITHOUT_EFFECT
    assert WITHOUT_EFFECT <= MAY_CHANGE  # a half-done run is resumed under another name too


def test_a_config_built_otherwise_is_the_same_run() -> None:
    config = load_experiment("shapes", ["optimization.weight_decay=1"])
    assert identity(validate(config), "c", "d") == identity(config, "c", "d")
    assert hash_of("optimization.weight_decay=1") == hash_of("optimization.weight_decay=1.0")


def test_the_embedded_data_need_no_fingerprint_and_another_seed_of_them_is_another_run() -> None:
    assert print_of() == print_of("dataset.shapes.seed=1", "dataset.shapes.num_train=10")
    assert hash_of("dataset.shapes.seed=1") != hash_of()


CHANGES: list[Callable[[Path], object]] = [
    lambda folder: (folder / "a.png").write_text("longer"),
    lambda folder: os.utime(folder / "b" / "c.png", (1, 1)),
    lambda folder: (folder / "a.png").rename(folder / "d.png"),
    lambda folder: (folder / "b" / "new.png").write_text("new"),
    lambda folder: (folder / "captions.csv").write_text(CAPTIONS + "a.png,a pug\n"),
    lambda folder: (folder / "b" / "c.png").unlink(),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["", "captions.csv", "*.csv"])
def test_data_are_the_same_wherever_they_lie_and_others_when_they_change(
    data: Path, name: str, change: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = shutil.copytree(data, data.parent / "elsewhere" / "moved")
    before = print_of(f"dataset.train_path={data / name}")
    assert before == print_of(f"dataset.train_path={moved / name}")
    monkeypatch.chdir(data.parent)
    assert before == print_of(f"dataset.train_path={Path('data') / name}")
    assert hash_of(f"dataset.train_path={data / name}") == hash_of(f"dataset.train_path={moved / name}")
    change(data)
    assert before != print_of(f"dataset.train_path={data / name}")


def test_hidden_files_and_runs_among_the_data_do_not_count(data: Path) -> None:
    folder, table = f"dataset.train_path={data}", f"dataset.train_path={data / 'captions.csv'}"
    before = print_of(folder), print_of(table)
    (data / ".hidden").write_text("other")
    run = data / "study" / "runs" / "abc"
    run.mkdir(parents=True)
    for name in (CONFIG, ENVIRONMENT, "picture.png"):
        (run / name).write_text("{}")
    assert (print_of(folder), print_of(table)) == before
    (data / "ablation.html").write_text("a report")  # a table names pictures, and in a folder every file may count
    assert print_of(table) == before[1]


def test_each_path_counts_by_its_key(data: Path) -> None:
    whole = f"dataset.train_path={data}"
    prints = [print_of(), print_of(whole), print_of(whole, f"dataset.val_path={data / 'b'}")]
    prints += [print_of(whole, f"dataset.test_path={data / 'b'}"), print_of(whole, f"dataset.image_root={data}")]
    assert len(set(prints)) == len(prints)


def test_pictures_below_the_image_root_count_for_a_table(data: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_text("a")
    overrides = (f"dataset.train_path={data / 'captions.csv'}", f"dataset.image_root={tmp_path / 'pictures'}")
    before = print_of(*overrides)
    (data / "a.png").write_text("no longer read")
    assert print_of(*overrides) == before
    (tmp_path / "pictures" / "a.png").write_text("another")
    assert print_of(*overrides) != before


def test_linked_folders_are_followed_once(data: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (data / "z").symlink_to(tmp_path / "more")
    (data / "round").symlink_to(data)
    (data / "nowhere").symlink_to(data / "missing")
    before = print_of(f"dataset.train_path={data}")
    (tmp_path / "more" / "d.png").write_text("d")
    assert print_of(f"dataset.train_path={data}") != before


def test_class_names_runs_and_local_models_count_by_what_is_in_them(data: Path, tmp_path: Path) -> None:
    names, run, model = tmp_path / "names.txt", tmp_path / "run", tmp_path / "model"
    names.write_text("cat\ndog")
    for folder in (run, model):
        folder.mkdir()
        (folder / MANIFEST).write_text("{}")
    config = load_experiment("shapes_vqa_qwen", [f"decoder.model={model}", f"vision_encoder.checkpoint={run}"])

    def prints() -> list[str]:
        return [print_of(f"dataset.train_path={data}", f"dataset.class_names={names}"), data_fingerprint(config)]

    before = prints()
    os.utime(names, (1, 1))
    os.utime(run / MANIFEST, (1, 1))
    (run / "report.html").write_text("written anew")
    assert prints() == before
    names.write_text("cat\npug")
    (run / MANIFEST).write_text('{"format": 1}')
    assert all(one != other for one, other in zip(prints(), before, strict=True))
    before = prints()
    (model / "weights").write_text("w")
    assert prints()[1] != before[1]


def test_a_model_of_the_hub_counts_by_its_name() -> None:
    def of(name: str) -> tuple[ExperimentConfig, str]:
        config = load_experiment("shapes_vqa_qwen", [f"decoder.model={name}"])
        return config, data_fingerprint(config)

    (one, same), (other, also) = of("Qwen/one"), of("Qwen/two")
    assert same == also
    assert identity(one, "", same) != identity(other, "", also)


def test_the_code_counts_but_for_the_command_line_reports_and_this(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("__init__.py", "layers/mlp.py", "cli/train.py", "ablation/plan.py", "reports/html.py")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
    monkeypatch.setattr(impresa, "__file__", str(tmp_path / "__init__.py"))
    versions = [code_version.__wrapped__()]
    for name in reversed(names):
        (tmp_path / name).write_text("new")
        versions.append(code_version.__wrapped__())
    assert len(set(versions)) == 3
    assert versions[0] == versions[3]
    monkeypatch.setattr("impresa.ablation.identity.installed_version", lambda name: f"another {name}")
    assert code_version.__wrapped__() not in versions
