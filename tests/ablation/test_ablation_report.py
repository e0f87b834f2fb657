"""Page, Markdown, table, JSON and terminal of a study: what they say, for results that are known."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from impresa.ablation.findings import find, headlines, lead, notes, wrapped
from impresa.ablation.plots import MAX_SHOWN, pareto_front, shown
from impresa.ablation.report import print_result, read_results, render_csv, render_markdown, render_page, write_results
from impresa.ablation.results import RunResult, StudyResult
from impresa.ablation.study import BASE, NULL, Study, Switch, Variant
from impresa.ablation.tables import make_tables, scaled
from impresa.errors import CheckpointError
from impresa.run_dir.cost import duration
from made_up_study import NAMES, made_up_study, with_failed


def study_of(scores: dict[str, list[float | None]], metric: str = "recall_at_1") -> StudyResult:
    """A study with these scores by variant, the base first; None is a run that is missing."""
    seeds = tuple(range(len(scores[BASE])))
    variants = tuple(
        Variant(name, () if name in {BASE, NULL} else tuple(name.split(", ")), 100 * (name == NULL)) for name in scores
    )
    runs = tuple(
        RunResult(
            name, seed, f"runs/{seed}", "missing" if score is None else "finished", figures=figures(metric, score)
        )
        for name, row in scores.items()
        for seed, score in enumerate(row)
    )
    switches = tuple(Switch(name.partition("=")[0], (name.partition("=")[2],)) for name in scores)
    return StudyResult(Study("shapes", (), switches, seeds, (metric,)), variants, runs)


def figures(metric: str, score: float | None) -> dict[str, float]:
    return {} if score is None else {metric: score}


SEEDS = [0.60, 0.61, 0.59, 0.62, 0.58]


def plus(difference: float, *, noise: float = 0.001) -> list[float | None]:
    return [score + difference + noise * (-1) ** seed for seed, score in enumerate(SEEDS)]


CLEAR: dict[str, list[float | None]] = {
    BASE: list(SEEDS),
    "a.depth=3": plus(-0.04),
    "a.type=x": plus(0.05),
    "a.position=append": plus(0.0002),
}


@pytest.fixture(scope="module")
def whole() -> StudyResult:
    return with_failed(made_up_study(), 7, reason="TrainingError: the <loss> is nan at step 41")


@pytest.fixture(scope="module")
def study_dir(whole: StudyResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(whole, tmp_path_factory.mktemp("study")).parent


@pytest.fixture(scope="module")
def page(study_dir: Path) -> str:
    return (study_dir / "ablation.html").read_text("utf-8")


def test_headlines_say_who_is_better_by_how_much_and_what_is_still_possible() -> None:
    found = find(study_of(CLEAR))
    better, worse, neither = (f"{line.name}: {line.text}" for line in headlines(found))
    amounts = r"\d\.\d points \((\d\.\d) to (\d\.\d)\)"
    assert re.fullmatch(f"a.type=x: better by {amounts}", better)
    assert re.fullmatch(f"a.depth=3: worse by {amounts}", worse)
    assert re.fullmatch(
        r"a.position=append: no difference shown \(could be \d\.\d points worse to \d\.\d better\)", neither
    )
    assert lead(found) == (
        "Of 3 variants, compared with the base on R@1 over 5 seeds: 1 better, 1 worse, for 1 no difference was shown."
    )


def test_a_lower_loss_is_better() -> None:
    lines = {line.name: line.text for line in headlines(find(study_of(CLEAR, "answer_loss")))}
    assert re.match(r"better by 0\.0(4|39)\d* \(0\.0\d\d to 0\.0\d\d\)", lines["a.depth=3"])
    assert lines["a.type=x"].startswith("worse by 0.05")


def test_few_seeds_give_estimates_only() -> None:
    result = study_of({name: row[:3] for name, row in CLEAR.items()})
    found = find(result)
    assert lead(found) == "No verdict, estimates only: 3 seeds, and verdicts need 5."
    text = render_markdown(found)
    assert "better by" not in text
    assert "5.0 points better on average, no verdict (3 shared seeds)" in text
    equal = find(study_of({BASE: SEEDS[:2], "a.depth=3": SEEDS[:2]}))
    assert headlines(equal)[0].text == "no difference on average, no verdict (2 shared seeds)"


@pytest.mark.parametrize("num_missing", [1, 3, 5, 20])
def test_a_study_in_progress_is_reported_as_far_as_it_goes(num_missing: int, tmp_path: Path) -> None:
    rows = [list(row) for row in CLEAR.values()]
    for number in range(num_missing):
        rows[-1 - number // 5][number % 5] = None
    result = study_of(dict(zip(CLEAR, rows, strict=True)))
    expected = f"Unfinished: {num_missing} of 20 runs are missing, and verdicts may change."
    assert expected in list(notes(find(result)))
    assert expected in write_results(result, tmp_path).read_text()
    print_result(result, Console(file=io.StringIO()))


@pytest.mark.parametrize(
    "scores",
    [
        {BASE: [0.5] * 5, "a.x=1": [0.5] * 5, "a.x=2": [0.5] * 5},
        {BASE: [1e29] * 5, "a.x=1": [2e29, 1.0, 3.0, 4.0, 5.0], "a.x=2": [0.0] * 5},
        {**CLEAR, BASE: [None] * 5},
        {**CLEAR, BASE: [0.5, *[None] * 4]},
        {name: [None] * 5 for name in CLEAR},
        {BASE: list(SEEDS)},
    ],
    ids=["all equal", "huge", "no base", "one run of the base", "nothing yet", "only the base"],
)
@pytest.mark.filterwarnings("error")
def test_odd_studies_have_a_report_too(scores: dict[str, list[float | None]], tmp_path: Path) -> None:
    result = study_of(scores, "image_to_text_mean_rank")
    assert "nan" not in re.sub("<style.*?</style>", "", write_results(result, tmp_path).read_text(), flags=re.DOTALL)
    print_result(result, Console(file=io.StringIO(), width=60))
    assert read_results(tmp_path / "ablation.json") == result


def test_failed_runs_are_named_with_their_reason(whole: StudyResult, page: str) -> None:
    reason = "TrainingError: the <loss> is nan at step 41"
    assert "TrainingError: the &lt;loss&gt; is nan at step 41" in page
    assert r"seed 2: TrainingError: the \<loss\> is nan" in render_markdown(find(whole))
    rows = list(csv.DictReader(io.StringIO(render_csv(whole))))
    assert [row["reason"] for row in rows if row["status"] == "failed"] == [reason]


@pytest.mark.parametrize(("shift", "words"), [(0.0, "as it must"), (0.3, "reason to doubt")])
def test_null_control_is_judged_apart(shift: float, words: str) -> None:
    found = find(study_of({**CLEAR, NULL: plus(shift, noise=0.004)}))
    assert NULL not in {line.name for line in headlines(found)}
    assert any(words in note for note in notes(found))


def test_a_variant_with_the_numbers_of_the_base_is_named() -> None:
    again: dict[str, list[float | None]] = {BASE: list(SEEDS), "a.pooling=cls": [*SEEDS[:4], None]}
    said = "a.pooling=cls has the numbers of the base to the last digit with every seed: it changed nothing here."
    assert said in list(notes(find(study_of(again))))
    assert not any("last digit" in note for note in notes(find(study_of(CLEAR))))


def test_a_metric_that_nobody_measured_is_named() -> None:
    result = study_of(CLEAR)
    result = replace(result, study=replace(result.study, metrics=("recall_at_1", "zero_shot_accuracy")))
    assert "zero_shot_accuracy was not measured in 20 of 20 finished runs." in list(notes(find(result)))
    only = replace(result, study=replace(result.study, metrics=("zero_shot_accuracy",)))
    assert "no verdict" in render_page(find(only)) or "without a verdict" in render_page(find(only))


def test_tables_have_a_row_for_each_variant_and_say_which_metric_judges(whole: StudyResult) -> None:
    judge, further, costs = make_tables(find(whole))
    assert judge.title == "R@1, the judge"
    for table in (judge, further, costs):
        assert [row.name for row in table.groups[""]] == ["base", *NAMES, "null (the base with other seeds)"]
    assert further.columns == ("R@5", "difference, points", "image → text mean rank", "difference")
    assert costs.columns == ("parameters", "FLOPs per sample", "samples/s", "peak memory", "training time")
    assert "Scores of equal seeds correlate by 0." in judge.figures
    depth = dict(
        zip(costs.columns, next(row for row in costs.groups[""] if row.name.endswith("=3")).cells, strict=True)
    )
    assert re.fullmatch(r"[\d.]+M \(\N{MINUS SIGN}\d+%\)", depth["parameters"])


def test_page_has_each_chart_once_and_nothing_from_outside(page: str) -> None:
    titles = re.findall(r"<h3>(.*?)</h3>", page)
    costs = [f"R@1 against {cost}" for cost in ("training time", "FLOPs per sample", "parameters")]
    learning = ["Validation loss", "Validation R@1, mean of both directions"]
    assert titles == ["Effect on R@1", "Each seed", *costs, "R@1 of embeddings cut short", *learning]
    assert len(re.findall('<svg role="img"', page)) == len(titles)
    assert not re.search(r'(?:src|href)="(?!#|data:)', re.sub(r'xmlns(:\w+)?="[^"]*"', "", page))
    assert len(set(ids := re.findall(r'\bid="([^"]*)"', page))) == len(ids)
    assert "#0101" not in page  # all colours are the page's
    assert not re.findall(r"\bnan\b", re.sub("nan at step", "", page))


def test_costs_that_are_the_same_for_all_are_not_drawn() -> None:
    result = made_up_study(NAMES[:2])
    cost = result.runs[0].cost
    assert cost is not None
    same = replace(result, runs=tuple(replace(run, cost=cost) for run in result.runs))
    assert " against " not in render_page(find(same))


@pytest.mark.parametrize("word", ["<script>alert(1)</script>", "$x^2$", "a|b`c", "\x1b[31mred", "[bold]no[/]", "日本"])
def test_names_of_others_stay_text(word: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    result = study_of({BASE: list(SEEDS), f"a.label={word}": plus(0.01)}, metric=f"exact_match:{word}")
    page = write_results(result, tmp_path).read_text()
    assert "<script" not in page
    assert "\x1b" not in page + (tmp_path / "ablation.md").read_text()
    if word.startswith("$"):
        assert f"label={word}" in page  # in the chart; formulas would be drawn
    terminal = io.StringIO()
    print_result(result, Console(file=terminal, width=200))
    assert "\x1b" not in terminal.getvalue()
    assert word.replace("\x1b", "\\u001b") in terminal.getvalue()
    assert not recwarn.list


def test_json_gives_the_same_result_again(whole: StudyResult, study_dir: Path) -> None:
    assert read_results(study_dir / "ablation.json") == whole
    stored = json.loads((study_dir / "ablation.json").read_text(), parse_constant=_refuse)
    assert set(stored["comparisons"]) == set(whole.study.metrics)
    assert len(stored["comparisons"]["recall_at_1"]["differences"]) == len(whole.variants)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def test_one_seed_has_no_interval_and_still_a_valid_json(tmp_path: Path) -> None:
    write_results(study_of({name: row[:1] for name, row in CLEAR.items()}), tmp_path)
    json.loads((tmp_path / "ablation.json").read_text(), parse_constant=_refuse)
    assert not re.search(r"\bnan\b", (tmp_path / "ablation.md").read_text())


@pytest.mark.parametrize("change", [("variant", "other"), ("seed", 99), ("status", "done"), ("figures", {"a": "b"})])
def test_changed_json_is_refused_in_one_line(tmp_path: Path, change: tuple[str, object]) -> None:
    write_results(study_of(CLEAR), tmp_path)
    path = tmp_path / "ablation.json"
    stored = json.loads(path.read_text())
    stored["result"]["runs"][3][change[0]] = change[1]
    path.write_text(json.dumps(stored))
    with pytest.raises(CheckpointError) as caught:
        read_results(path)
    assert len(str(caught.value).splitlines()) == 1


def test_csv_has_a_row_for_each_run_with_all_figures_and_costs(whole: StudyResult) -> None:
    rows = list(csv.DictReader(io.StringIO(render_csv(whole))))
    assert [(row["variant"], int(row["seed"])) for row in rows] == [(run.variant, run.seed) for run in whole.runs]
    first = whole.runs[0]
    assert first.cost is not None
    assert {name: float(rows[0][name]) for name in first.figures} == first.figures
    assert float(rows[0]["training_seconds"]) == first.cost.training_seconds


def test_terminal_of_eighty_columns_loses_nothing(whole: StudyResult) -> None:
    terminal = io.StringIO()
    print_result(whole, Console(file=terminal, width=80))
    text = terminal.getvalue()
    assert "…" not in text
    assert "no difference shown" in text
    assert f"1 run of {len(whole.runs)} failed" in text


def test_a_hundred_runs_are_reported_within_ten_seconds(tmp_path: Path) -> None:
    names = [*NAMES, *(f"vision_encoder.depth={depth}" for depth in range(20, 27))]
    result = made_up_study(names, points=100)
    assert len(result.runs) == 100
    began = time.process_time()
    page = write_results(result, tmp_path).read_text()
    assert time.process_time() - began < 10
    assert page.count('<svg role="img"') == 8


def test_of_very_many_variants_the_largest_differences_are_drawn(page: str) -> None:
    names = [f"vision_encoder.depth={depth}" for depth in range(1, 40)]
    found = find(made_up_study(names, num_seeds=2, points=2))
    drawn = shown(found)
    assert len(drawn) == 1 + MAX_SHOWN
    assert {0, len(names) + 1} <= set(drawn)  # the base, and the control
    sizes = {i: abs(difference.mean) for i, difference in enumerate(found.judge.differences) if difference}
    left_out = sizes.keys() - set(drawn)
    assert max(sizes[i] for i in left_out) <= min(sizes[i] for i in drawn[1:-1])
    assert "largest differences are drawn" not in page


def test_pareto_front() -> None:
    points = {0: (1.0, 0.5), 1: (1.0, 0.6), 2: (2.0, 0.55), 3: (3.0, 0.7), 4: (4.0, 0.7)}
    assert pareto_front(points, higher_is_better=True) == [1, 3]
    assert pareto_front(points, higher_is_better=False) == [0]


def test_short_names_keep_what_tells_keys_apart() -> None:
    names = ("vision_encoder.depth=3", "text_encoder.depth=3", "losses.type=clip", f"a.path={'x' * 20}{'y' * 20}")
    found = find(study_of({BASE: list(SEEDS), **{name: plus(0) for name in names}}))
    assert found.short_names == (BASE, *names[:2], "type=clip", f"path={'x' * 12}…{'y' * 12}")


@pytest.mark.parametrize("name", ["8  use_attention_pooling=false, pooling=mean", "x" * 100, "", "a", "= . , "])
def test_wrapped_names_lose_no_sign(name: str) -> None:
    lines = wrapped(name, 24)
    assert all(len(line) <= 24 for line in lines)
    assert "".join(lines).replace(" ", "") == name.replace(" ", "")


def test_numbers_are_short() -> None:
    assert [scaled(n) for n in (0, 5, 999.4, 999.6, 12_345_678, 1.7e9)] == ["0", "5", "999", "1k", "12.3M", "1.7G"]
    assert [duration(n) for n in (0.5, 81.2, 150, 9000)] == ["0.5 s", "81.2 s", "2.5 min", "2.5 h"]


def test_charts_call_variants_as_their_study_does() -> None:
    overrides = ("vision_encoder.use_perceiver=true", "vision_encoder.perceiver_num_layers=3")
    result = made_up_study(["vision_encoder.depth=3", "pooling=three layers"], null=False)
    base, plain, named = result.variants
    given = replace(result, variants=(base, plain, replace(named, overrides=overrides)))
    assert find(given).short_names == (BASE, "depth=3", "pooling=three layers")
