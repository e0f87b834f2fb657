"""The report page: whole and partial runs, escaping, self-containment, and what its numbers and marks say."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from fake_model import ColourModel, ListSource, colour_source
from impresa.config import to_yaml
from impresa.config.experiment import ExperimentConfig, LabelsConfig
from impresa.data.sample import Sample
from impresa.data.sources.base import BadSample
from impresa.errors import CheckpointError, ConfigError
from impresa.evaluation.gallery import Example
from impresa.evaluation.results import Evaluation, save_evaluation
from impresa.reports.html import write_report
from impresa.tasks.alignment.evaluate import evaluate

EVIL = "<script>alert('x')</script> & \"quoted\" {slot} ${x}"
METRICS = """step,epoch,train_loss,lr,val_loss,val_image_to_text_recall_at_1
1,0,4.5,0.001,,
2,0,3.5,0.002,3.9,0.25
3,0,nan,0.001,,
4,1,2.5,,3.0,0.5
5,1,2."""
VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """Reads a page, checks that tags are closed in order, and keeps what a test asks about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(text)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def report(run_dir: Path) -> str:
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluation]:
    run_dir = tmp_path_factory.mktemp("run")
    source = colour_source(24, labels=True)
    source.items[5] = BadSample("square-5", "truncated file")
    model = ColourModel.with_templates("a {} thing", "some {}")
    evaluation = evaluate(model, source, data="squares, test split", train_source=source)
    save_evaluation(evaluation, run_dir)
    labels = LabelsConfig(description="Plain squares.", tags=("tiny",))
    config = ExperimentConfig(name="squares_run", seed=1234, labels=labels)
    (run_dir / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    (run_dir / "metrics.csv").write_text(METRICS, encoding="utf-8")
    (run_dir / "bad_samples.jsonl").write_text('{"split": "train", "id": "row 9", "reason": "no image"}\n{"spl')
    environment = {
        "started": "2026-01-02T03:04:05+00:00",
        "command": ["impresa", "train", "demo", "labels.description=two words"],
        "seed": 1234,
        "impresa": "0.1.0",
        "packages": {"torch": "2.13.0", "wandb": None},
        "git": {"commit": "abc123", "has_changes": False},
    }
    (run_dir / "environment.json").write_text(json.dumps(environment))
    return run_dir, evaluation


def test_whole_run(whole: tuple[Path, Evaluation]) -> None:
    run_dir, evaluation = whole
    page = Page(report(run_dir))
    scores = evaluation.retrieval
    expected = [
        "squares_run",
        "Plain squares.",
        "2026-01-02 03:04:05 UTC",
        f"{scores.image_to_text.recall_at[1]:.1%}",
        f"{scores.text_to_image.recall_at[10]:.1%}",
        f"{evaluation.baselines['chance'].image_to_text.recall_at[1]:.1%}",
        "colour histogram",
        "squares, test split : 23 images".replace(" :", ":"),
        "Zero-shot classification",
        "23 of 23 images are named right",
        "“a {} thing”",
        "1 in train , 1 in evaluation",
        "truncated file",
        "impresa train demo 'labels.description=two words'",
        "1234",
        "torch 2.13.0",
        "abc123",
        "optimization:",
    ]
    assert [words for words in expected if words not in page.text] == []
    assert "wandb None" not in page.text
    assert page.tags.count("svg") == 3  # loss, validation recall, learning rate
    assert page.text.count("✓") == sum(a.right for e in gallery_examples(evaluation) for a in e.answers)
    assert page.text.count("✗") == sum(not a.right for e in gallery_examples(evaluation) for a in e.answers)


def gallery_examples(evaluation: Evaluation) -> tuple[Example, ...]:
    return (*evaluation.gallery.image_queries, *evaluation.gallery.text_queries)


def test_nothing_is_fetched_and_nothing_runs(whole: tuple[Path, Evaluation]) -> None:
    page = Page(report(whole[0]))
    assert not {"script", "iframe", "object", "embed"} & set(page.tags)
    references = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset", "data")]
    elsewhere = {value for value in references if not value.startswith(("data:", "#"))}
    assert elsewhere == {"config.yaml", "metrics.csv", "evaluation.json", "environment.json", "bad_samples.jsonl"}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "@import" not in report(whole[0])
    assert not re.search(r"url\((?!#)", report(whole[0]))


def test_ids_are_unique_and_resolve(whole: tuple[Path, Evaluation]) -> None:
    page = Page(report(whole[0]))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = re.findall(r"url\(#([^)]+)\)", report(whole[0]))
    used += [value[1:] for name, value in page.attributes if name.endswith("href") and value.startswith("#")]
    assert used
    assert set(used) <= set(ids)


def test_light_and_dark(whole: tuple[Path, Evaluation]) -> None:
    text = report(whole[0])
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    charts = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert set(re.findall(r"var\(--\w+\)", charts)) == {f"var(--{name})" for name in ("text", "line", "blue", "orange")}
    assert "#000000" not in charts


def test_everything_is_escaped(tmp_path: Path) -> None:
    items = colour_source(4, labels=True).items
    items = [
        Sample(id=EVIL, image=s.image, captions=(f"{s.captions[0]} {EVIL}",), label=f"{s.label}{EVIL}") for s in items
    ]
    source = ListSource([*items, BadSample(EVIL, EVIL)])
    save_evaluation(evaluate(ColourModel.with_templates(f"{EVIL} {{}}"), source, data=EVIL), tmp_path)
    config = ExperimentConfig(name=EVIL, labels=LabelsConfig(description=EVIL, version=EVIL, tags=(EVIL,)))
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    (tmp_path / "bad_samples.jsonl").write_text(json.dumps({"split": EVIL, "id": EVIL, "reason": EVIL}))
    (tmp_path / "environment.json").write_text(
        json.dumps({"command": [EVIL], "platform": EVIL, "packages": {EVIL: EVIL}})
    )
    text = report(tmp_path)
    page = Page(text)
    assert "script" not in page.tags
    assert "<script" not in text
    assert page.text.count("<script>alert('x')") > 10


def test_empty_run_directory(tmp_path: Path) -> None:
    page = Page(report(tmp_path))
    assert tmp_path.name in page.text
    assert "has not been evaluated yet" in page.text
    assert "svg" not in page.tags


def test_run_that_is_still_training(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,epoch,train_loss\n1,0,5\n")
    (tmp_path / "config.yaml").write_text(to_yaml(ExperimentConfig(name="young")))
    page = Page(report(tmp_path))
    assert page.tags.count("svg") == 1
    assert "young" in page.text


def test_retrieval_without_labels_and_labels_without_retrieval(tmp_path: Path, whole: tuple[Path, Evaluation]) -> None:
    _, evaluation = whole
    save_evaluation(replace(evaluation, zero_shot=None), tmp_path)
    assert "Zero-shot" not in Page(report(tmp_path)).text
    only_classes = Evaluation(data="x", num_images=2, num_texts=0, num_distinct_texts=0, zero_shot=evaluation.zero_shot)
    save_evaluation(only_classes, tmp_path)
    text = Page(report(tmp_path)).text
    assert "Zero-shot" in text
    assert "What an image finds" not in text
    assert "R@5" not in text


def test_many_classes_become_a_picture(tmp_path: Path, whole: tuple[Path, Evaluation]) -> None:
    names = tuple(f"class {i}" for i in range(30))
    confusion = tuple(tuple(int(i == j) * 5 + int((i, j) == (3, 4)) * 2 for j in range(30)) for i in range(30))
    scores = replace(whole[1].zero_shot, classes=names, confusion=confusion, per_class_accuracy={})
    save_evaluation(replace(whole[1], zero_shot=scores), tmp_path)
    page = Page(report(tmp_path))
    assert "class 3 named class 4 : 2" in page.text
    assert ("alt", "confusion matrix") in page.attributes


def test_wrong_examples_show_what_would_be_right(tmp_path: Path) -> None:
    black = colour_source(5).items[4]
    shades = [Image.new("RGB", (8, 8), (i, i, i)) for i in range(8)]
    blacks = [replace(black, id=str(i), image=shade, captions=(f"black number {i}",)) for i, shade in enumerate(shades)]
    save_evaluation(evaluate(ColourModel(), ListSource(blacks), data="blacks"), tmp_path)
    assert "Right: black number 0" in Page(report(tmp_path)).text


def test_writes_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(tmp_path)
    before = (tmp_path / "report.html").read_text()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("impresa.files.os.replace", fail)
    (tmp_path / "metrics.csv").write_text(METRICS)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "report.html"]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no run directory"):
        write_report(tmp_path / "missing")
    (tmp_path / "config.yaml").write_text("nmae: x\n")
    with pytest.raises(ConfigError, match="nmae"):
        write_report(tmp_path)
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "environment.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"environment\.json: Invalid JSON"):
        write_report(tmp_path)


@pytest.mark.parametrize("odd", [{"git": 0.5}, {"gpus": [["a"]]}, {"command": 1.5}, {"packages": [1]}, {"seed": -1}])
def test_an_environment_of_another_kind_is_one_line(odd: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text(json.dumps(odd))
    with pytest.raises(CheckpointError, match=rf"environment\.json: `{min(odd)}.*; remove it"):
        write_report(tmp_path)


@pytest.mark.parametrize("name", ["metrics.csv", "bad_samples.jsonl"])
def test_endless_texts_are_refused(name: str, tmp_path: Path) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match=rf"{name}: is larger than 64 MiB; remove it"):
        write_report(tmp_path)


def test_bad_samples_that_are_nested_too_deeply_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "bad_samples.jsonl").write_text("[" * 100_000 + '\n{"split": "train", "id": "row 9", "reason": "no"}')
    assert "row 9" in report(tmp_path)
