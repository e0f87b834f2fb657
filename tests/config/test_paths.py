"""Missing data is named before anything heavy is imported, with the fix."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from impresa.config import load_experiment, paths
from impresa.config.dataset import DatasetConfig
from impresa.config.paths import check_data_paths
from impresa.config.runs import read_run
from impresa.config.shard_names import braces_expanded
from impresa.data.sources import open_path
from impresa.errors import ConfigError, DataError


def test_the_guide_s_default_paths_name_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check_data_paths(load_experiment("default"))
    assert caught.value.lines == (
        "dataset.train_path (training.data.train_path): data/train does not exist; `impresa data export shapes data` "
        f"writes the embedded data there, or name your own (looked in {tmp_path})",
        "dataset.val_path (training.data.val_path): data/val does not exist; `impresa data export shapes data` "
        f"writes the embedded data there, or name your own (looked in {tmp_path})",
    )
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "val").mkdir()
    check_data_paths(load_experiment("default"))


def test_a_path_of_the_user_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"dataset\.test_path: nowhere\.parquet does not exist; name an existing"):
        check_data_paths(load_experiment("shapes", ["dataset.test_path=nowhere.parquet"]))


def test_a_file_of_class_names_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.class_names: gone\.txt does not exist; name .* or give a list"):
        check_data_paths(load_experiment("shapes", ["dataset.class_names=gone.txt"]))
    check_data_paths(load_experiment("shapes", ["dataset.class_names=[cat,dog]"]))


def test_an_installed_package_has_its_configs_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "impresa"
    (installed / "configs").mkdir(parents=True)
    monkeypatch.setattr(paths, "__file__", str(installed / "config" / "paths.py"))
    assert paths.shipped_folder() == installed / "configs"


def test_the_embedded_data_needs_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_data_paths(load_experiment("shapes"))
    check_data_paths(load_experiment("shapes", ["dataset.source=hub", "dataset.train_path=owner/name"]))
    with pytest.raises(ConfigError, match="shapes does not exist"):
        check_data_paths(load_experiment("shapes", ["dataset.source=folder"]))


def test_a_pattern_of_parquet_files_is_there_if_one_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_experiment("shapes", ["dataset.train_path='pq/**/*.parquet'"])
    with pytest.raises(ConfigError, match=r"^dataset\.train_path .*: pq/\*\*/\*\.parquet does not exist; name an"):
        check_data_paths(config)
    (tmp_path / "pq" / "deep").mkdir(parents=True)
    (tmp_path / "pq" / "deep" / "a.parquet").touch()
    check_data_paths(config)
    (tmp_path / "[photos]").mkdir()
    check_data_paths(load_experiment("shapes", ["dataset.train_path='[photos]'"]))


@pytest.mark.parametrize(("source", "allowed"), [("parquet", True), ("webdataset", True), ("shapes", False)])
def test_a_pattern_stands_for_files_of_any_kind_but_not_for_the_embedded_data(
    source: str, allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_experiment("shapes", [f"dataset.source={source}", "dataset.train_path='shards/*.tar'"])
    missing = r"^dataset\.train_path .*: shards/\*\.tar does not exist; name an"
    with pytest.raises(ConfigError, match=missing):
        check_data_paths(config)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar").touch()
    with nullcontext() if allowed else pytest.raises(ConfigError, match=missing):
        check_data_paths(config)


def test_the_home_of_a_user_that_is_not_known_is_a_missing_path() -> None:
    with pytest.raises(ConfigError, match=r"^dataset\.train_path .*: ~nobody-at-all/data does not exist; name an"):
        check_data_paths(load_experiment("shapes", ["dataset.train_path='~nobody-at-all/data'"]))
    with pytest.raises(ConfigError, match=r"^~nobody-at-all/a\.yaml: there is no such file"):
        load_experiment("~nobody-at-all/a.yaml")
    with pytest.raises(ConfigError, match=r"^RUN: ~nobody-at-all/run does not exist; name the directory"):
        read_run("RUN", "~nobody-at-all/run")


def test_data_that_an_example_writes_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in paths.EXAMPLES:
        with pytest.raises(ConfigError) as caught:
            check_data_paths(load_experiment(name))
        assert all(f"`python examples/{name}.py` writes it" in line for line in caught.value.lines)
        with pytest.raises(DataError, match=f"`python examples/{name}.py` writes it"):
            open_path(DatasetConfig(), f"data/{name}/test")
    assert "examples/" not in paths.fix_of_missing("data/mine/test.parquet")
    assert "examples/" not in paths.fix_of_missing("data")


def test_every_example_that_writes_data_is_known() -> None:
    folder = Path(__file__).parents[2] / "examples"
    writing = {file.stem for file in folder.glob("*.py") if f'"data/{file.stem}"' in file.read_text(encoding="utf-8")}
    assert writing == set(paths.EXAMPLES)


@pytest.mark.parametrize("pattern", ["train.{a,b}.parquet", "{train.a,train.b}.parquet", "train.{a,b}.par*", "{tr,x}*"])
def test_a_list_in_braces_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    for name in "abc":
        pq.write_table(pa.table({"image": [b""], "caption": [name]}), f"train.{name}.parquet")
    config = load_experiment("shapes", [f"dataset.train_path='{pattern}'"])
    check_data_paths(config)
    assert len(open_path(config.dataset, pattern)) == (3 if "*" in pattern and "," in pattern[:5] else 2)
    assert not paths.is_there("train.{x,y}.parquet")


def test_a_file_with_braces_in_its_name_is_that_file(tmp_path: Path) -> None:
    file = tmp_path / "{a,b}.parquet"
    file.touch()
    assert paths.is_there(str(file))


def test_shards_are_named_by_braces_and_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (8, 9, 10):
        (tmp_path / f"{number:04d}.tar").touch()

    def check(path: str) -> None:
        check_data_paths(load_experiment("shapes", [f"dataset.train_path='{path}'"]))

    for path in ("{0008..0010}.tar", "{0008,0010}.tar", "s3://bucket/{0000..0099}.tar", "https://host/a.tar?x=1"):
        check(path)
    with pytest.raises(ConfigError, match=r"dataset\.train_path .*: 0011\.tar does not exist; name an existing"):
        check("{0008..0012}.tar")
    with pytest.raises(ConfigError, match=r"pipe:cat a\.tar is a command, and none is run; name the shards"):
        check("pipe:cat a.tar")
    with pytest.raises(ConfigError, match=r"its braces stand for more than 1000000 names; name fewer files"):
        check("{0..9999999}.tar")
    (tmp_path / "{a,b}.tar").touch()
    check("{a,b}.tar")


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{9..11}", ["9", "10", "11"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{0..10..5}", ["0", "5", "10"]),
        ("{004..000..3}", ["004", "001"]),
        ("{1..2..0}", ["1", "2"]),
        ("a{x,y}b{1..2}", ["axb1", "axb2", "ayb1", "ayb2"]),
        ("{a,{1..2}}", ["a", "1", "2"]),
        ("{a}{}", ["{a}{}"]),
        ("{a..c}", ["{a..c}"]),
    ],
)
def test_braces_are_those_of_a_shell(path: str, names: list[str]) -> None:
    assert braces_expanded(path) == names


def test_pixmo_is_fetched() -> None:
    said = paths.fix_of_missing("data/pixmo_qa/train.parquet")
    assert "impresa data fetch TABLE --out data/pixmo_qa" in said
    assert "dataset.train_path=data/pixmo_qa" in said
