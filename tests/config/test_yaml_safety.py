"""YAML of strangers: refused with one line that has the place, before anything is built or expanded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from impresa.config import ExperimentConfig, to_yaml
from impresa.config.compose import load_experiment, read_config
from impresa.config.experiment import LabelsConfig
from impresa.config.yaml_text import MAX_BYTES, read_mapping
from impresa.errors import ConfigError

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED = [
    ("optimization: {lr: 1, lr: 2}", ":1:23: key lr is given twice; keep one"),
    ("seed: 1\nname: a\nseed: 2\n", ":3:1: key seed is given twice; keep one"),
    ("a: !!python/object/apply:os.system ['true']", ":1:4: the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
    ("a: !!python/object/apply:pathlib.Path ['x']", ":1:4: the tag 'tag:yaml.org,2002:python/object/apply:pathlib."),
    ("a: !!python/name:os.system", ":1:4: the tag 'tag:yaml.org,2002:python/name:os.system' is not for a config"),
    ("a: !secret x", ":1:4: the tag '!secret' is not for a config; write a plain value"),
    ("a: !!binary aGk=", ":1:4: the tag 'tag:yaml.org,2002:binary' is not for a config"),
    (BOMB, "holds more than 20000 values, aliases expanded"),
    ("a: &a [1, *a]", ":1:11: *a stands inside itself; write the value out"),
    ("a: &a {b: {c: *a}}", ":1:15: *a stands inside itself"),
    ("a: *b", ":1:4: broken YAML: found undefined alias 'b'"),
    ("a: " + "[" * 200 + "]" * 200, "is nested more than 40 deep"),
    ("a: [1, 2", "broken YAML while parsing a flow sequence: expected ',' or ']'"),
    ("a: b: c", ":1:5: broken YAML: mapping values are not allowed here"),
    ("\tseed: 1", ":1:1: broken YAML while scanning for the next token: found character '\\t'"),
    ("a: 1\n---\nb: 2\n", ":2:1: a second document begins; a config is one document"),
    ("- a\n- b\n", ":1:1: is no mapping of keys; write key: value"),
    ("just text", ":1:1: is no mapping of keys; write key: value"),
    ("seed: \x00", "is no YAML that can be used"),
]


@pytest.mark.parametrize(("text", "line"), REFUSED, ids=[line[:40] for _, line in REFUSED])
def test_refused(text: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    started = time.thread_time()
    for read in (read_mapping, read_config, lambda file: load_experiment(str(file))):
        with pytest.raises(ConfigError) as caught:
            read(path)
        assert len(caught.value.lines) == 1
        assert "\n" not in caught.value.lines[0]
        assert caught.value.lines[0].startswith(str(path))
        assert line in caught.value.lines[0]
    assert time.thread_time() - started < 5


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file"):
        read_mapping(path)
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match=r"is not UTF-8 \(byte 6\); save it as UTF-8"):
        read_mapping(path)
    path.write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="is larger than 256 KiB"):
        read_mapping(path)
    with pytest.raises(ConfigError, match="is a directory; name a YAML file"):
        read_mapping(tmp_path)


def test_honest_yaml_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "\ufeff# a comment\ncommon: &sizes {dim: 64, depth: 2}\nvision_encoder: {<<: *sizes, num_heads: 4}\n"
        "optimization: {lr: 5e-4}\nname: !!str 5\n",
        encoding="utf-8",
    )
    config = read_mapping(path)
    assert config["vision_encoder"] == {"dim": 64, "depth": 2, "num_heads": 4}
    assert config["optimization"] == {"lr": 5e-4}
    assert config["name"] == "5"


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("# nothing yet\n")
    assert read_mapping(path) == {}


SECRETS = [
    "name: ${oc.env:SECRET}",
    "labels: {description: 'a ${oc.env:SECRET} b'}",
    "labels: {tags: [a, '${oc.env:SECRET}']}",
    "labels: {tags: ['${${a}:SECRET}']}",
    "name: ${oc.decode:${oc.env:SECRET}}",
    "name: \\\\${oc.env:SECRET}",
    "${oc.env:SECRET}: 1",
    "name: ${labels.version}",
    "defaults: [../elsewhere]",
]
"""What a stranger's run could ask of the machine that reads it; a doubled backslash escapes itself and not `${`."""
MARKS = ("manifest.json", "environment.json", "preprocessing.json", "model.safetensors")


@pytest.mark.parametrize("text", SECRETS)
def test_a_run_s_config_reads_nothing_of_this_machine(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "elsewhere.yaml").write_text("name: hunter2")
    path = run / "config.yaml"
    path.write_text(text)

    def refused(read: Callable[[], object]) -> None:
        with pytest.raises(ConfigError) as caught:
            read()
        (line,) = caught.value.lines
        assert line.startswith(f"{path}: ")
        assert line.endswith("; write the value out") or line.endswith("; write the values out")
        assert "hunter2" not in line

    refused(lambda: read_config(path))
    for mark in MARKS:  # `impresa train RUN/config.yaml` repeats a run
        (run / mark).touch()
        refused(lambda: load_experiment(path))
        (run / mark).unlink()


def test_a_config_of_one_s_own_may_build_on_no_run_that_asks_for_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: ${oc.env:SECRET}")
    (tmp_path / "run" / "manifest.json").touch()
    mine = tmp_path / "mine.yaml"
    mine.write_text("defaults: [run/config@_global_]\n")
    with pytest.raises(ConfigError, match=r"name: .* is filled in from elsewhere"):
        load_experiment(mine)


def test_a_config_of_one_s_own_is_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN", "mine")
    path = tmp_path / "config.yaml"
    path.write_text("name: ${oc.env:OWN}")
    assert load_experiment(path).name == "mine"
    (tmp_path / "manifest.json").touch()
    path.write_text("name: theirs")
    assert load_experiment(path, ["name=${oc.env:OWN}"]).name == "mine"


def test_text_that_only_looks_like_a_request_comes_back(tmp_path: Path) -> None:
    config = replace(ExperimentConfig(), name=r"\${oc.env:SECRET} ${x}", labels=LabelsConfig(tags=("${y:z}",)))
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert read_config(path) == config
