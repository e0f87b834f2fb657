"""Each benchmark at tiny sizes: it runs to its end, finds ours equal to the peer, and writes its figures."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("peft")
FOLDER = Path(__file__).parents[2] / "benchmarks"
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.syspath_prepend(FOLDER)
    threads = torch.get_num_threads()

    def quick(name: str, *arguments: str) -> dict[str, Any]:
        output = tmp_path / "figures.json"
        importlib.import_module(name).main([*arguments, "--quick", "--output", str(output)])
        return json.loads(output.read_text())

    yield quick
    torch.set_num_threads(threads)


def test_matryoshka(run: Run) -> None:
    pytest.importorskip("sentence_transformers")
    figures = run("matryoshka")
    assert set(figures["costs"]) >= {"sentence-transformers", "two products", "impresa", "plain loss, two products"}
    ours, each = figures["costs"]["impresa"], figures["costs"]["two products"]
    assert ours["peak_bytes"] < each["peak_bytes"]  # counted, so the same at each run
    assert 0 < figures["differences"]["impresa"] < 1e-5


def test_learning(run: Run) -> None:
    figures = run("learning", "siglip")
    assert set(figures["runs"]) == {"clip", "siglip"}
    assert all(0 <= run["r_at_1"] <= 1 for rates in figures["runs"].values() for runs in rates.values() for run in runs)


def test_learning_rates_are_chosen_on_validation_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    learning = importlib.import_module("learning")
    lucky = [{"r_at_1_validation": 0.4, "r_at_1": 0.9}]
    steady = [{"r_at_1_validation": 0.6, "r_at_1": 0.5}, {"r_at_1_validation": 0.6, "r_at_1": 0.7}]
    assert learning.best({"1e-3": lucky, "2e-3": steady}) == pytest.approx(0.6)


def test_contrastive_step(run: Run) -> None:
    figures = run("contrastive_step")
    for captions in ("8 to 14 words", "4 to 60 tokens", "the whole context"):
        costs = figures[captions]["costs"]
        assert len(costs) == 4
        assert all(cost["seconds"] > 0 and cost["peak_bytes"] > 0 for cost in costs.values())
        ways = {"loss", "gradients", "packed loss", "packed gradients"}
        assert set(figures[captions]["differences"]) == {*ways, "trimmed text"}
        assert 0 < figures[captions]["differences"]["packed gradients"] < 1e-5


def test_chunked_batch(run: Run) -> None:
    figures = run("chunked_batch")
    assert figures["memory_share"] < 0.4  # counted, so the same at each run
    assert figures["costs"]["in chunks"]["peak_bytes"] < figures["costs"]["the whole batch"]["peak_bytes"]
    assert 0 <= max(figures["differences"].values()) < 1e-5


def test_fsdp(run: Run) -> None:
    figures = run("fsdp")
    assert figures["memory_share"] < 0.6
    assert {len(figures[strategy]) for strategy in ("ddp", "fsdp")} == {2}


def test_vlm_step(run: Run) -> None:
    figures = run("vlm_step")
    for layers in (2, 3):
        costs = figures[f"{layers} layers"]["costs"]
        full, kept, ours = costs.values()
        assert ours["peak_bytes"] < kept["peak_bytes"] < full["peak_bytes"]  # counted, so the same at each run
        assert max(figures[f"{layers} layers"]["differences"].values()) < 1e-6


def test_loop_overhead(run: Run) -> None:
    figures = run("loop_overhead")
    assert set(figures["costs"]) == {"bare loop", "impresa"}
    assert figures["difference"] == 0.0  # the same steps, to the bit
    assert math.isfinite(figures["overhead"])


def test_two_cores(run: Run) -> None:
    figures = run("two_cores")  # it compares the losses itself
    assert figures["ratio"] == figures["samples_per_second"]["2"][0] / figures["samples_per_second"]["1"][0]


def test_shards(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # is set, and given back
    figures = run("shards")
    for kind in ("webdataset", "parquet"):
        assert 0 < figures[kind]["start"]["open_s"] < figures[kind]["start"]["first_batch_s"]
        assert figures[kind]["reading"]["ratio"] > 0
    assert "webdataset" not in run("shards", "--format", "parquet")


def test_the_stored_run_of_many_small_images_is_quick_to_begin_and_small() -> None:
    figures = json.loads((FOLDER / "results" / "shards.json").read_text())
    assert figures["samples"] == 100_000
    for kind in ("webdataset", "parquet"):
        assert max(figures["index_s"], figures[kind]["start"]["open_s"]) < 20
        assert figures[kind]["start"]["first_batch_s"] < 3
        assert max(figures[kind][part]["resident_mib"] for part in ("start", "reading")) < 600


def test_decoding(run: Run) -> None:
    pytest.importorskip("simplejpeg")
    figures = run("decoding")
    assert figures["costs"].keys() == {"plain", "impresa", "impresa, reduced_decode"}
    assert figures["differences"]["impresa"] < figures["differences"]["impresa, reduced_decode"] < 2.5


def test_the_stored_decoding_changes_pixels_by_no_more_than_is_said() -> None:
    differences = json.loads((FOLDER / "results" / "decoding.json").read_text())["differences"]
    assert differences["impresa"] <= 1
    assert differences["impresa, reduced_decode"] <= 2.5


def check_kills(figures: dict[str, Any]) -> None:
    faults = ("fetched twice", "stored twice", "lost", "half-written")
    assert [figures["killed"][fault] for fault in faults] == [0] * len(faults)


def test_fetch(run: Run) -> None:
    figures = run("fetch")
    check_kills(figures)
    assert figures["killed"]["kills"] == 1
    assert all(speed > 0 for speed in figures["files_per_s"].values())


def test_the_stored_fetch_is_as_fast_as_promised_and_loses_nothing() -> None:
    stored = FOLDER / "results" / "fetch.json"
    if not stored.exists():
        pytest.skip("no run is stored")
    figures = json.loads(stored.read_text())
    check_kills(figures)
    assert figures["killed"]["kills"] == 20
    assert figures["files_per_s"]["impresa"] >= 300
    page = (FOLDER.parent / "docs" / "benchmarks.md").read_text()
    assert f"{figures['files_per_s']['impresa']:,.0f} per second on one core" in page


def test_patch_dropout(run: Run) -> None:
    figures = run("patch_dropout")
    whole, half, quarter = figures["costs"].values()
    assert quarter["peak_bytes"] < half["peak_bytes"] < whole["peak_bytes"]  # counted, so the same at each run


def test_cached_features(run: Run) -> None:
    figures = run("cached_features")
    assert figures["ratio"] > 1
    assert 0 < figures["difference"] < 5e-3
    assert figures["bytes_per_image"] == 2 * 64 + 28  # a summary of 64 numbers, and its entry


def test_gpu(run: Run) -> None:
    """The skeleton: on a CPU the compiled towers and the tests that need CUDA are left out."""
    pytest.importorskip("bitsandbytes")
    figures = run("gpu")
    parts = figures["parts"]
    assert len(parts["contrastive"]) >= 6
    assert len(parts["language model"]) == 3
    rows = [*parts["contrastive"], *parts["language model"]]
    assert all(row["per_second"] > 0 and row["peak_gib"] > 0 for row in rows)
    assert 0 < max(parts["nf4"].values()) < 1e-2
    float32 = parts["precisions"]["32-true"]
    assert all(losses == pytest.approx(float32, rel=0.05) for losses in parts["precisions"].values())
    assert torch.cuda.is_available() or figures["missing"] == {"tests": "there is no GPU"}


def test_a_part_that_does_not_fit_or_begins_too_late_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    gpu = importlib.import_module("gpu")
    bench = gpu.Bench(torch.device("cpu"), quick=True, flops=1.0)

    def too_large(_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu, "PARTS", {"large": too_large, "small": lambda _: 1})
    assert gpu.run_parts(bench, minutes=1) == ({"small": 1}, {"large": "it does not fit into this device's memory"})
    assert gpu.run_parts(bench, minutes=-1)[0] == {}


def test_generation(run: Run) -> None:
    figures = run("generation")
    assert set(figures["decoders"]) == {"qwen", "qwen with recursion", "trm"}
    for both in figures["decoders"].values():
        assert set(both) >= {"cached", "uncached"}
        assert all(
            math.isfinite(value) and value > 0 for kind in ("cached", "uncached") for value in both[kind].values()
        )


def test_own(run: Run, tmp_path: Path) -> None:
    figures = run("own", "--work", str(tmp_path / "own"))
    assert len(figures["runs"]) == 1
    assert {"mrr", "colour histogram", "ridge baseline"} <= figures["runs"][0].keys()


def test_the_photos_are_the_same_for_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    photos, random = importlib.import_module("photos"), np.random.default_rng
    (one, said), (again, _), (other, _) = (photos.draw_photo(random(seed)) for seed in (3, 3, 4))
    assert one.tobytes() == again.tobytes() != other.tobytes()
    assert all(480 <= side <= 1024 for side in one.size)
    assert any(thing in said for thing in photos.THINGS)


def test_the_classifiers_beside_the_digits_are_those_of_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(FOLDER)
    table = (FOLDER.parent / "README.md").read_text()
    spec = importlib.util.spec_from_file_location("benchmark_of_digits", FOLDER / "digits.py")
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    for name, value in benchmark.classifiers().items():
        assert f"{name} on the pixels and labels | {value:.1%} |" in table


def test_the_digits_table_is_that_of_the_stored_run() -> None:
    stored = FOLDER / "results" / "digits.json"
    if not stored.exists():
        pytest.skip("no run is stored")
    figures = json.loads(stored.read_text())
    found = ", ".join(f"{100 * value:.1f}" for value in sorted(figures["zero_shot"]))
    row = f"| Impresa, captions only, three seeds | {found}%: mean {figures['mean']:.1%} |"
    assert row in (FOLDER.parent / "README.md").read_text()


def test_the_stored_mixtures_keep_the_old_and_have_most_of_the_gain() -> None:
    stored = FOLDER / "results" / "wise_ft.json"
    if not stored.exists():
        pytest.skip("no run is stored")
    for curve in json.loads(stored.read_text())["curves"]:
        first, last = curve["points"][0], curve["points"][-1]
        kept = [point["new"] for point in curve["points"] if point["old"] >= 0.95 * first["old"]]
        assert max(kept) - first["new"] >= 0.9 * (last["new"] - first["new"]) > 0.2


def test_own_photos_are_found_more_often_than_by_the_baselines_as_the_docs_say() -> None:
    stored = json.loads((FOLDER / "results" / "own.json").read_text())
    assert stored["photos"] == 300
    assert stored["test"] >= 60
    found, colours, pixels = (
        [run[name] for run in stored["runs"]] for name in ("mrr", "colour histogram", "ridge baseline")
    )
    assert len(found) == 3
    assert sum(found) / 3 > max(colours + pixels)
    first, second, third = (f"{value:.2f}" for value in found)
    text = (FOLDER.parent / "docs" / "benchmarks.md").read_text()
    assert f"{first}, {second} and {third} (seeds 0, 1 and 2" in text
    assert f"against {colours[0]:.2f} for a colour histogram and {pixels[0]:.2f} for a ridge" in text


def test_a_difference_is_found_and_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    timing = importlib.import_module("timing")
    expected = [torch.ones(4), torch.ones(2)]
    assert timing.largest_difference([torch.ones(4), torch.ones(2) * 1.25], expected, 0.5) == pytest.approx(0.25)
    for wrong in (1.25, float("nan")):
        with pytest.raises(SystemExit, match="differs by"):
            timing.largest_difference([torch.ones(4) * wrong, torch.ones(2)], expected, 0.2)


def test_the_docs_show_the_stored_runs_and_these_keep_what_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    summary = importlib.import_module("summary")
    page = summary.PAGE.read_text()
    assert summary.with_tables(page) == page, "run python benchmarks/summary.py"
    for figure in (*summary.FIGURES, *summary.LEARNED):
        assert figure.value >= figure.at_least, figure.question


@pytest.mark.parametrize(("options", "vectors"), [((), "drawn"), (("--trained",), "of a trained run")])
def test_funnel(run: Run, options: tuple[str, ...], vectors: str) -> None:
    figures = run("funnel", *options)
    assert figures["recall"] >= 0.99
    assert figures["vectors"] == vectors
    assert figures["funnel"]["queries_per_s"] > 0
    assert figures["exact"]["queries_per_s"] > 0


def test_indexing(run: Run) -> None:
    figures = run("indexing")
    assert figures["beside_encoding"]["encode_s"] > 0
    assert figures["update"]["embedded"] == figures["update"]["read"] == 2
    assert figures["update"]["files"] == 200


def test_serving(run: Run) -> None:
    pytest.importorskip("uvicorn")
    figures = run("serving")
    assert figures["answers"] >= figures["clients"]
    assert figures["lost_or_mixed_up"] == 0
    assert figures["p99_ms"] >= figures["p50_ms"] > 0


def test_a_peak_does_not_depend_on_what_was_measured_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    peak_memory = importlib.import_module("timing").peak_memory
    kept: list[torch.Tensor] = []

    def step() -> None:
        """Takes 4000 bytes, then 1000 more, and keeps the latter until the next step."""
        kept.clear()
        activations = torch.empty(1000)
        kept.append(torch.empty(250))
        del activations
        torch.empty(500)

    assert [peak_memory(step) for _ in range(3)] == [5000, 5000, 5000]
    assert peak_memory(kept.clear) == 0
