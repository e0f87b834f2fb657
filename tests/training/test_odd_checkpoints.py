"""Resuming from files that are damaged, of another run, or forged: one line of our own, nothing outside is touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import impresa
from impresa.errors import CheckpointError, ConfigError, ImpresaError
from impresa.run_dir.environment import read_environment
from impresa.training.run import train
from impresa.training.wandb_run import _wandb_id
from tiny_run import copy_of_run, finished_run, tiny_experiment, without_charts

SOURCES = Path(impresa.__file__).parent
COMMAND = ["impresa", "train", "shapes"]
Content = dict[str, Any]


def unfinished(tmp_path: Path) -> Path:
    """A run that has its checkpoints and is not finished."""
    run = copy_of_run(tmp_path / "run")
    (run / "manifest.json").unlink()
    text = (run / "environment.json").read_text()
    (run / "environment.json").write_text(text.replace('"finished"', '"ended"'))
    return run


def resume(run: Path) -> None:
    train(tiny_experiment(), run, command=COMMAND, resume=True)


def refused(run: Path) -> str:
    with pytest.raises(ImpresaError) as caught:
        resume(run)
    (line,) = caught.value.lines
    assert "weights_only" not in line
    assert "\n" not in line
    assert len(line) < 400
    return line


def first(tree: dict[Any, Any]) -> Any:
    return next(iter(tree))


def without(*keys: str) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        for key in keys:
            del content[key]

    return change


def with_parts(**parts: Any) -> Callable[[Content], None]:
    return lambda content: content.update(parts)


def in_state(change: Callable[[dict[str, Any]], object]) -> Callable[[Content], None]:
    def of_first(content: Content) -> None:
        change(content["optimizer"]["state"][0])

    return of_first


PARTS = ("step", "epoch", "scores", "model", "optimizer", "scaler", "average", "data", "losses")
CHANGES: dict[str, Callable[[Content], object]] = {
    **{f"without {part}": without(part) for part in PARTS},
    **{f"{part} is a list of texts": with_parts(**{part: ["a"]}) for part in PARTS},
    "step is negative": with_parts(step=-1),
    "a score is text": with_parts(scores={"a.ckpt": "good"}),
    "position lacks a key": lambda content: content["data"].pop("seed"),
    "position is text": lambda content: content["data"].update(next_batch="3"),
    "model lacks a tensor": lambda content: content["model"].pop(first(content["model"])),
    "model has one more": lambda content: content["model"].update(more=torch.zeros(1)),
    "model of another shape": lambda content: content["model"].update({first(content["model"]): torch.zeros(1, 1)}),
    "model of numbers": lambda content: content["model"].update({first(content["model"]): 3}),
    "optimizer is empty": lambda content: content["optimizer"].clear(),
    "optimizer of more parameters": lambda content: content["optimizer"]["state"].update({10_000: {}}),
    "optimizer lacks a moment": in_state(lambda state: state.pop("exp_avg")),
    "optimizer has another moment": in_state(lambda state: state.update(momentum_buffer=torch.zeros(1))),
    "optimizer of another shape": in_state(lambda state: state.update(exp_avg=torch.zeros(1))),
    "optimizer of numbers": in_state(lambda state: state.update(exp_avg=3)),
    "a name leads out": with_parts(scores={"../../precious.ckpt": 99.0}),
    "an absolute name": with_parts(scores={"/precious.ckpt": 99.0}),
    "a name of no checkpoint": with_parts(scores={"precious": 99.0}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_checkpoint_that_does_not_fit_is_refused(change: Callable[[Content], object], tmp_path: Path) -> None:
    run = unfinished(tmp_path)
    last = run / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    change(content)
    last.unlink()  # it shares its data with the best one
    torch.save(content, last)
    before = sorted(tmp_path.rglob("*"))
    assert "checkpoint" in refused(run)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"nonsense", None])
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes | None, tmp_path: Path) -> None:
    run = unfinished(tmp_path)
    last = run / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    last.unlink()
    last.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert "last.ckpt: is no usable checkpoint (it is damaged, or something else); remove it to resume" in refused(run)
    for other in ([1, 2], torch.zeros(3), "text"):
        torch.save(other, last)
        assert "last.ckpt: is no usable checkpoint (it holds something else)" in refused(run)
    last.unlink()
    last.mkdir()
    assert "last.ckpt: is no usable checkpoint (it is no file)" in refused(run)


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "step\nnone\n", "step,epoch\n1,2,3,4\n", "\0", "step\n" + "9" * 200_000, "\xff\xfe"]
)
def test_metrics_of_something_else_are_refused_before_the_first_step(text: str, tmp_path: Path) -> None:
    run = unfinished(tmp_path)
    (run / "metrics.csv").write_text(text, encoding="latin-1")
    if text == "":  # no metrics yet
        resume(run)
        return
    assert "metrics.csv: holds something else than the metrics of this run; remove it" in refused(run)


@pytest.mark.parametrize("text", ["{}", '{"of a later version": [1]}'])
def test_an_environment_of_another_version_does_no_harm(text: str, tmp_path: Path) -> None:
    run = unfinished(tmp_path)
    (run / "environment.json").write_text(text)
    resume(run)
    assert read_environment(run).items() >= json.loads(text).items()


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\xff", "[]", "3", '{"resumed": 3}', '{"resumed": {"a": 1}}'])
def test_a_damaged_environment_is_refused(text: str, tmp_path: Path) -> None:
    run = unfinished(tmp_path)
    (run / "environment.json").write_text(text, encoding="latin-1")
    message = refused(run)
    assert "environment.json: " in message
    assert "; remove it" in message


def test_odd_lines_among_the_bad_samples_are_passed_over(tmp_path: Path) -> None:
    run = unfinished(tmp_path)
    odd = ("[1]", "3", "null", "{}", '{"split": "train", "id": ["x"], "reason": 1}', "[" * 100_000, "\xff")
    (run / "bad_samples.jsonl").write_text("\n".join(odd), encoding="latin-1")
    resume(run)


@pytest.mark.parametrize("name", ["checkpoints", "events", "evaluation", "metrics.csv", "bad_samples.jsonl"])
def test_a_run_with_links_is_not_written_to(name: str, tmp_path: Path) -> None:
    run, outside = unfinished(tmp_path), tmp_path / "outside"
    inside = run / name
    if inside.exists():
        inside.rename(outside)
    elif "." in name:
        outside.write_text("")
    else:
        outside.mkdir()
    inside.symlink_to(outside)
    before = sorted(tmp_path.rglob("*"))
    assert f"{name}: is a link or no plain file, and is not written to" in refused(run)
    assert sorted(tmp_path.rglob("*")) == before


def test_manifest_names_stay_in_the_run(tmp_path: Path) -> None:
    run = copy_of_run(tmp_path / "run")
    (tmp_path / "secret").write_text("secret")
    manifest = run / "manifest.json"
    for name in ("../secret", str(tmp_path / "secret"), "tokenizer/../../secret"):
        text = (finished_run() / "manifest.json").read_text()
        manifest.write_text(text.replace('"sha256": {', f'"sha256": {{"{name}": "0",'))
        with pytest.raises(CheckpointError, match=r"manifest\.json: '.*' does not stay in its folder; restore the run"):
            impresa.load(run)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("dirpath=/elsewhere", "'/elsewhere' does not stay in its folder; name a folder in the run directory"),
        ("dirpath=../elsewhere", "does not stay in its folder"),
        ("dirpath=a/../../b", "does not stay in its folder"),
        ("dirpath=tokenizer", "tokenizer is a folder of the run itself; name another folder"),
        ("dirpath=backbones/mine", "backbones is a folder of the run itself"),
        ("filename=/elsewhere", "does not stay in its folder"),
        ("filename=../{step}", "does not stay in its folder"),
        ("filename=a/{step}", "is no file name; write one like "),
        ("filename=.{step}", "is no file name"),
        (f"filename={'a' * 300}", "is longer than 200 bytes"),
        ("filename={step:0999999999d}", "is too wide; use at most 100 digits"),
    ],
)
def test_checkpoints_are_kept_in_the_run(setting: str, line: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"trainer\.checkpoint\.{setting.strip(chr(39)).partition('=')[0]}: .*{line}"
    ):
        tiny_experiment(f"trainer.checkpoint.{setting.strip(chr(39))}")


@pytest.mark.parametrize("setting", ["dirpath=deep/er", "dirpath=.", "dirpath=./mine/", "filename={epoch}..{step}"])
def test_other_names_inside_are_taken(setting: str) -> None:
    tiny_experiment(f"trainer.checkpoint.{setting}")


def test_checkpoints_are_opened_in_one_place_and_run_no_code() -> None:
    found = [path for path in SOURCES.rglob("*.py") if "torch.load(" in path.read_text()]
    # The pool's processes read what their own parent wrote into a pipe.
    found = [path for path in found if path.relative_to(SOURCES).as_posix() != "tasks/alignment/pool.py"]
    assert [path.relative_to(SOURCES).as_posix() for path in found] == ["training/checkpoints.py"]
    assert found[0].read_text().count("torch.load(") == found[0].read_text().count("weights_only=True") == 1


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    without_charts(monkeypatch)
    monkeypatch.setattr("impresa.training.finish.finish", lambda *_, **__: None)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"../../x\n", b"a" * 1_000_000, b"a b"])
def test_an_id_of_weights_and_biases_is_an_id(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "wandb_id").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"wandb_id: is no id of Weights & Biases; remove it"):
        _wandb_id(tmp_path)
    (tmp_path / "wandb_id").unlink()
    assert _wandb_id(tmp_path) == _wandb_id(tmp_path)
