"""What a report shows of a run beside its figures: data, best step, files, code to copy, losses beside chance."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from math import log
from pathlib import Path

import pytest

from browser import WITH_CHROMIUM, opened
from impresa.evaluation.preview import DataPreview, TrainingSample, read_preview
from impresa.evaluation.results import ZeroShotMetrics, read_evaluation, save_evaluation
from impresa.reports.charts import Curve, full_steps, history_charts, read_history
from impresa.reports.html import render_report
from tiny_run import STEPS_PER_EPOCH, copy_of_run, finished_run

PHONE_PX = 390
SHORT = DataPreview({"train": 18}, steps_per_epoch=3, has_short_step=True, loss_at_chance=1.5)


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(finished_run())


def test_a_finished_run_shows_its_data(page: str) -> None:
    preview = read_preview(finished_run())
    assert preview is not None
    assert preview.splits == {"train": 18, "val": 8, "test": 8}
    assert (preview.steps_per_epoch, preview.has_short_step) == (STEPS_PER_EPOCH, True)
    assert preview.loss_at_chance == pytest.approx(log(4))
    assert "train 18, val 8, test 8 rows" in page
    assert all(f'title="{sample.captions[0]}">{sample.captions[0]}</span>' in page for sample in preview.samples)
    assert all(sample.image is not None and sample.image in page for sample in preview.samples)
    assert len({sample.image for sample in preview.samples}) > 1


def test_a_finished_run_names_its_best_step_and_its_files(page: str) -> None:
    assert re.search(r"<dt>Best step</dt><dd>\d of 9, by val_loss</dd>", page)
    assert "<dt>Training time</dt>" in page
    assert "<dt>Parameters</dt>" in page
    links = re.findall(r'<a href="([^"]+)">', page)
    assert {"README.md", "config.yaml", "metrics.csv", "evaluation.json", "model.safetensors"} <= set(links)
    assert all((finished_run() / link).exists() for link in links)
    assert html.escape(f"model = impresa.load({str(finished_run())!r})").replace("&#x27;", "&#39;") in page


def test_a_short_run_has_logged_every_step() -> None:
    assert read_history(finished_run())["train_loss"].steps == tuple(range(1, 10))


def test_losses_stand_beside_chance_and_without_short_steps() -> None:
    history = {"train_loss": Curve(tuple(range(1, 10)), (2.0, 1.9, 0.1) * 3)}
    alone, beside = history_charts(history)["Loss"], history_charts(history, SHORT)["Loss"]
    assert "chance in training (1.50)" in beside
    assert "chance" not in alone
    assert full_steps(history["train_loss"], 3) == Curve((1, 2, 4, 5, 7, 8), (2.0, 1.9) * 3)
    means = Curve((1, 10, 20), (2.0, 1.0, 0.5))  # over several steps
    assert full_steps(means, 5) == means
    assert full_steps(means, 1) == Curve((10, 20), (1.0, 0.5))
    assert full_steps(Curve((1,), (2.0,)), 1) == Curve((1,), (2.0,))


@pytest.mark.parametrize("number", [3, 30])
def test_accuracy_by_class(tmp_path: Path, number: int) -> None:
    names = tuple(f"class {n}" for n in range(number))
    confusion = tuple(tuple(4 * (i == j) + (j == 0 < i == 2) for j in range(number)) for i in range(number))
    accuracies = {name: 0.8 if name == "class 2" else 1.0 for name in names if name != "class 1"}
    shot = ZeroShotMetrics(names, ("{}",), 4 * number, 0.99, accuracies, confusion, 1 / number, 0.1)
    evaluation = read_evaluation(finished_run())
    assert evaluation is not None
    save_evaluation(replace(evaluation, zero_shot=shot), tmp_path)
    page = render_report(tmp_path)
    rows = re.findall(r"<bdi>(class \d+)</bdi></span><i><b[^>]*></b></i><span class=\"number\">([^<]+)<", page)
    assert rows[0] == ("class 2", "80.0% of 5")
    assert len(rows) == number - 1
    assert ("<details open>" in page) == (number == 3)


def test_a_preview_of_evil_texts_is_escaped(tmp_path: Path) -> None:
    from impresa.evaluation.preview import save_preview

    evil = "<script>alert('x')</script>"
    samples = (TrainingSample(evil, None, (evil,), ((evil, evil),)),)
    save_preview(replace(SHORT, samples=samples), tmp_path)
    page = render_report(tmp_path)
    assert evil not in page
    assert html.escape(evil, quote=False).replace("'", "&#39;") in page


@WITH_CHROMIUM
def test_the_button_is_there_where_its_script_may_run(page: str, tmp_path: Path) -> None:
    assert '<button type="button" class="copy" hidden' in page
    assert '<button type="button" class="copy">' in opened(page, tmp_path)
    other = page.replace("button.hidden = false;", "button.hidden = false; // changed")
    assert (
        "hidden" in re.findall("<button[^>]*>", opened(other, tmp_path))[0]
    )  # the policy knows the script by its hash


@WITH_CHROMIUM
def test_tables_fit_a_phone(tmp_path: Path) -> None:
    page = render_report(copy_of_run(tmp_path / "run"))
    measure = """const boxes = [document.documentElement, ...document.querySelectorAll(".scroll")];
    parent.document.title = "by " + boxes.map((box) => box.scrollWidth - box.clientWidth).join(" ");"""
    inside = re.sub("<meta http-equiv[^>]*>", "", page).replace("</body>", f"<script>{measure}</script></body>")
    frame = f'<iframe style="width:{PHONE_PX}px;height:800px;border:0" srcdoc="{html.escape(inside)}"></iframe>'
    found = re.search("<title>by ([^<]*)</title>", opened(f"<!DOCTYPE html>{frame}", tmp_path))
    assert found
    assert "(" in page  # intervals stand in the tables
    assert set(found[1].split()) == {"0"}
