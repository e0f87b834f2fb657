"""`impresa train own` and `impresa config show own`: what is said, and that the YAML that is shown trains the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from impresa.cli.main import main
from impresa.config import load_experiment, read_config
from pictures import gradient
from tiny_run import without_charts

QUICK = (
    *("vision_encoder.dim=16", "text_encoder.dim=16", "vision_encoder.depth=1", "trainer.max_steps=2"),
    *("dataset.image_size=16", "dataset.num_workers=0", "trainer.accelerator=cpu"),
    "trainer.logging.tensorboard=false",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder `holiday` of a table that names its columns in its own way."""
    without_charts(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("impresa.own.choices.is_at_hand", lambda name: False)
    monkeypatch.setattr("impresa.own.choices.can_be_fetched", lambda: False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "holiday").mkdir()
    lines = ["picture,title"]
    for number in range(20):
        gradient(30 + number, 40).save(tmp_path / "holiday" / f"{number}.png")
        lines.append(f"{number}.png,gradient number {number}")
    (tmp_path / "holiday" / "photos.csv").write_text("\n".join(lines))
    return tmp_path


def test_it_says_what_it_chose_and_how_long_it_takes_and_names_the_run(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["train", "own", "--dataset.train_path", "holiday/", *QUICK]) == 0
    out, err = capsys.readouterr()
    run = Path(out.splitlines()[-1])
    assert run.parent == Path("runs/holiday")
    config = read_config(run / "config.yaml")
    assert (config.name, config.dataset.image_column, config.dataset.caption_column) == ("holiday", "picture", "title")
    for text in (
        "20 images, 20 different of 20 captions",
        "dataset.caption_column",
        "a fifth: 4 of 20 images",
        "time: ",
    ):
        assert text in err
    assert err.index("a fifth: 4 of 20") < err.index("time: about") < err.index("step 2/2")
    row = next(line for line in err.splitlines() if "dataset.image_size" in line and "as you set it" in line)
    assert " 16 " in row


def test_the_yaml_that_is_shown_is_the_same_experiment(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "own", "--dataset.train_path", "holiday/", *QUICK]) == 0
    shown = capsys.readouterr()
    (folder / "kept.yaml").write_text(shown.out)
    assert "chosen" in shown.err
    assert main(["train", "own", "dataset.train_path=holiday/", *QUICK, "--output-dir", "one"]) == 0
    assert main(["train", "kept.yaml", "--output-dir", "two"]) == 0
    assert load_experiment("one/config.yaml") == load_experiment("two/config.yaml")
    one, two = ((folder / run / "model.safetensors").read_bytes() for run in ("one", "two"))
    assert one == two


def test_a_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.iterdir())
    assert main(["train", "own", "dataset.train_path=holiday", *QUICK, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "16 samples to train on, 4 to validate" in out
    assert "a fifth: 4 of 20" in " ".join(err.split())
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("verb", [("train",), ("config", "show")])
def test_without_data_there_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], verb: tuple[str, ...]
) -> None:
    assert main([*verb, "own"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "dataset.train_path: own looks at your pictures first; name their folder or table, dataset.train_path=photos/"
    ]


def test_a_study_of_it_is_one_of_what_it_chose(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "own", "dataset.train_path=holiday", "vision_encoder.depth=1,2"]) == 2
    assert "`impresa config show own dataset.train_path=photos/ > photos.yaml`" in capsys.readouterr().err
