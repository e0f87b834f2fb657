"""`impresa eval`: which data are evaluated, what is printed and what is written, and refusals in one line."""

from __future__ import annotations

import json
import weakref
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from fake_model import ColourModel, colour_source
from impresa.cli.main import main
from impresa.config import to_yaml
from impresa.config.dataset import DatasetConfig, ShapesConfig
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.data.sources import Source
from impresa.evaluation.predictions import Prediction
from impresa.evaluation.results import Evaluation, read_evaluation
from tiny_vlm import finished_vlm

SHAPES = ShapesConfig(num_train=40, num_val=11, num_test=13)
CONFIG = ExperimentConfig(name="tiny", dataset=DatasetConfig(shapes=SHAPES, image_size=16))


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory whose model is a stand-in."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(CONFIG))
    use(CONFIG, monkeypatch)
    return run


@pytest.fixture(scope="module")
def vlm() -> Path:
    """A finished run with a decoder, trained before any stand-in takes the place of `load`."""
    return finished_vlm()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine squares with captions and labels, and a broken one."""
    path = tmp_path / "squares"
    path.mkdir()
    rows = []
    for i, sample in enumerate(colour_source(9, labels=True).items):
        sample.image.save(path / f"{i}.png")
        rows.append({"image": f"{i}.png", "caption": sample.captions[0], "label": sample.label})
    (path / "broken.png").write_bytes(b"no image")
    rows.append({"image": "broken.png", "caption": "nothing"})
    (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def use(config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impresa.run_dir.load.load", lambda run_dir, device=None: ColourModel(config=config))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_own_data_renew_evaluation_and_report(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run_dir)]) == 0
    shown = capsys.readouterr()
    assert "shapes, test split: 13 images" in shown.out
    assert "colour histogram" in shown.out
    assert "chance" in shown.out
    assert shown.err == f"report: {run_dir / 'report.html'}\n"
    assert files(run_dir) == ["config.yaml", "evaluation.json", "evaluation/gallery.json", "report.html"]
    assert read_evaluation(run_dir).num_images == 13
    assert "tiny" in (run_dir / "report.html").read_text()


def test_json_is_all_that_standard_output_has(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run_dir), "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert TypeAdapter(Evaluation).validate_python(tree) == read_evaluation(run_dir)
    assert tree["retrieval"]["image_to_text"]["recall_at"].keys() == {"1", "5", "10"}


@pytest.mark.parametrize(("words", "name", "count"), [
    (["--split", "val"], "shapes, val split", 11),
    (["--data", "shapes"], "shapes, test split", 13),
    (["--data", "shapes", "--split", "train"], "shapes, train split", 40),
])  # fmt: skip
def test_other_data_write_nothing(
    run_dir: Path, capsys: pytest.CaptureFixture[str], words: list[str], name: str, count: int
) -> None:
    assert main(["eval", str(run_dir), *words]) == 0
    assert f"{name}: {count} images" in capsys.readouterr().out
    assert files(run_dir) == ["config.yaml"]


def test_folder_with_a_bad_sample(run_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run_dir), "--data", str(folder), "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["data"], tree["num_images"]) == (str(folder), 9)
    assert [note["id"] for note in tree["bad_samples"]] == ["broken.png"]
    assert tree["zero_shot"]["accuracy"] == 1.0
    assert list(tree["baselines"]) == ["colour histogram", "ridge baseline", "chance"]
    assert files(run_dir) == ["config.yaml"]


def test_lost_training_data_cost_only_the_histogram(
    run_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(replace(CONFIG, dataset=replace(CONFIG.dataset, train_path="lost/train", val_path="lost/val")), monkeypatch)
    assert main(["eval", str(run_dir), "--data", str(folder), "--json"]) == 0
    shown = capsys.readouterr()
    assert list(json.loads(shown.out)["baselines"]) == ["chance"]
    assert "no colour histogram and ridge baseline beside the model" in shown.err
    assert "lost/train" in shown.err


def test_the_baseline_beside_an_audio_encoder_sees_no_validation_row(
    run_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"image": f"{i}.png" if i % 3 else "", "audio": f"{i}.wav", "caption": f"c {i}"} for i in range(9)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = replace(CONFIG.dataset, train_path=str(folder), val_fraction=0.4)
    with_audio = replace(CONFIG, dataset=dataset, audio_encoder=EncoderConfig(backbone="spectrogram"))
    use(with_audio, monkeypatch)
    opened: list[Source] = []

    def keep(model: object, source: Source, *, train_source: Source, **_: object) -> Evaluation:
        opened.extend((source, train_source))
        return Evaluation("kept", 0, 0, 0)

    monkeypatch.setattr("impresa.tasks.alignment.evaluate.evaluate", keep)
    assert main(["eval", str(run_dir), "--split", "val"]) == 0
    val, train = (set(source.captions()) for source in opened)
    assert val | train == {f"c {i}" for i in range(9)}
    assert not val & train


def test_batch_size_reaches_the_model(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ColourModel(config=CONFIG)
    monkeypatch.setattr("impresa.run_dir.load.load", lambda run_dir, device=None: model)
    assert main(["eval", str(run_dir), "--batch-size", "5"]) == 0
    assert [number for kind, number in model.calls if kind == "image"] == [5, 5, 3]


def test_device_reaches_the_model(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def load(run_dir: Path, device: object = None) -> ColourModel:
        asked.append(device)
        return ColourModel(config=CONFIG)

    monkeypatch.setattr("impresa.run_dir.load.load", load)
    assert main(["eval", str(run_dir), "--device", "cpu"]) == 0
    assert asked == ["cpu"]


@pytest.mark.parametrize(("words", "message"), [
    (["--batch-size", "0"], "--batch-size: 0 is not a whole number from 1"),
    (["--device", "toaster"], "--device: toaster cannot be used here"),
    (["--device", "meta"], "--device: meta cannot be used here (it holds no numbers)"),
    (["--data", "no/such/place"], "no/such/place: no such file or folder"),
    (["--data", "a.parquet", "--split", "val"], "--split: a.parquet is taken whole"),
])  # fmt: skip
def test_refusals_are_one_line(
    run_dir: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["eval", str(run_dir), *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize("exists", [False, True])
def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], exists: bool) -> None:
    place = tmp_path if exists else tmp_path / "missing"
    assert main(["eval", str(place)]) == 2
    shown = capsys.readouterr()
    assert str(place) in shown.err
    assert shown.err.count("\n") == 1


def test_a_run_that_cannot_be_written_still_prints(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("impresa.evaluation.results.write_atomic", refuse)
    assert main(["eval", str(run_dir)]) == 2
    shown = capsys.readouterr()
    assert "13 images" in shown.out
    assert shown.err == f"{run_dir}: cannot be written (Permission denied); the figures above stand\n"


def test_what_cannot_be_printed_is_written_before(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UnicodeError

    monkeypatch.setattr("impresa.reports.terminal.print_results", refuse)
    with pytest.raises(UnicodeError):
        main(["eval", str(run_dir)])
    assert "evaluation.json" in files(run_dir)


def test_validation_of_a_decoder_has_all_that_the_test_has(vlm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(vlm), "--split", "val", "--device", "cpu"]) == 0
    table = capsys.readouterr().out
    rows = [line.split("  ")[0].strip() for line in table.splitlines()]
    assert {"model", "other images", "most frequent answer"} <= set(rows)
    assert "shapes, val split: 6 images" in table
    assert "perplexity" in table
    assert "In brackets: 95% intervals" in table
    assert "ROUGE-L" in table
    assert main(["eval", str(vlm), "--split", "val", "--device", "cpu", "--json"]) == 0
    found = TypeAdapter(Evaluation).validate_python(json.loads(capsys.readouterr().out))
    assert found.answers is not None
    assert found.answers.shuffled.num_questions == found.answers.model.num_questions == found.num_texts
    assert found.answers.kinds
    named = {"exact_match", "token_f1", "rouge_l", "answer_loss", "perplexity"}
    assert named <= found.intervals["model"].keys()
    assert (
        found.intervals["model"]["answer_loss"].low < found.answers.loss < found.intervals["model"]["answer_loss"].high
    )
    assert {"exact_match", "token_f1"} <= found.intervals["other images"].keys()
    for kind, scores in found.answers.kinds.items():
        assert kind in table
        assert list(scores) == ["model", "shuffled", "blind"]


def test_other_data_may_have_columns_and_prompts_of_their_own(
    run_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    table = folder / "metadata.jsonl"
    text = table.read_text().replace('"caption"', '"text"')
    table.write_text(text.replace('"label"', '"class"'))
    words = ["eval", str(run_dir), "--data", str(folder), "--json"]
    assert main(words) == 2
    assert "set dataset.caption_column" in capsys.readouterr().err
    table.write_text(text)
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["retrieval"] is None
    assert f"{folder}: no captions (column 'caption', dataset.caption_column), so labels alone are read" in caplog.text
    keys = ["dataset.caption_column=text", "--dataset.prompt_templates", "['all {}']", "dataset.source=folder"]
    assert main([*words, *keys]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["num_images"], tree["zero_shot"]["templates"]) == (9, ["all {}"])
    assert list(tree["baselines"]) == [
        "colour histogram",
        "ridge baseline",
        "chance",
    ]  # fitted on the run's own data, read as before
    assert files(run_dir) == ["config.yaml"]


def test_other_data_are_not_read_from_the_folder_of_the_runs_images(
    run_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    trained = replace(CONFIG, dataset=replace(CONFIG.dataset, image_root=str(elsewhere)))
    use(trained, monkeypatch)
    words = ["eval", str(run_dir), "--data", str(folder), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["num_images"] == 9
    assert main([*words, f"dataset.image_root={elsewhere}"]) == 2
    assert f"No such file or directory: {elsewhere / '0.png'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["dataset.caption_column=x"], "dataset.caption_column=x: is for other data than the run's own; name them"),
        (["--data", "shapes", "optimization.lr=1"], "optimization.lr: is no key of `dataset`, the only ones here"),
        (["--data", "shapes", "dataset.batch_size=3"], "dataset.batch_size: changes nothing here"),
        (["--data", "shapes", "dataset.caption_colum=x"], "dataset.caption_colum: unknown key; did you mean"),
    ],
)
def test_keys_that_change_nothing_are_refused(
    run_dir: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    assert main(["eval", str(run_dir), *words]) == 2
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize("layout", ["table", "folders"])
def test_labels_alone_are_enough_for_zero_shot(
    run_dir: Path, tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for i, sample in enumerate(colour_source(9, labels=True).items):
        path = data / (sample.label if layout == "folders" else "images") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        sample.image.save(path)
        if layout == "table":
            with (data / "labels.csv").open("a") as table:
                table.write(f"{'' if i else 'image;label' + chr(10)}images/{i}.png;{sample.label}\n")
    assert main(["eval", str(run_dir), "--data", str(data)]) == 0
    shown = capsys.readouterr().out
    assert "zero-shot accuracy" in shown
    assert "R@1" not in shown
    assert main(["eval", str(run_dir), "--data", str(data), "--json"]) == 0
    found = TypeAdapter(Evaluation).validate_python(json.loads(capsys.readouterr().out))
    assert (found.retrieval, found.num_texts, found.num_images, found.bad_samples) == (None, 0, 9, ())
    assert found.zero_shot.accuracy == 1.0


def test_a_run_whose_test_data_have_labels_alone_gets_its_report(
    run_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()[:9]]
    table = "image,label\n" + "".join(f"{row['image']},{row['label']}\n" for row in rows)
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text(table)
    use(replace(CONFIG, dataset=replace(CONFIG.dataset, test_path=str(folder))), monkeypatch)
    assert main(["eval", str(run_dir)]) == 0
    assert "zero-shot accuracy" in capsys.readouterr().out
    assert read_evaluation(run_dir).retrieval is None
    assert "zero-shot accuracy" in (run_dir / "report.html").read_text()


def second_run(run_dir: Path, monkeypatch: pytest.MonkeyPatch, **model: object) -> Path:
    """A second run, whose stand-in model is `ColourModel(**model)`."""
    other = run_dir.parent / "other"
    other.mkdir()
    (other / "config.yaml").write_text(to_yaml(CONFIG))
    models = {run_dir: ColourModel, other: lambda config: ColourModel(config=config, **model)}
    monkeypatch.setattr("impresa.run_dir.load.load", lambda path, device=None: models[path](config=CONFIG))
    return other


class BlindToBlue(ColourModel):
    """Sees red and green alone."""

    def encode_image(self, images: list[torch.Tensor], **options: object) -> torch.Tensor:
        return super().encode_image([image * torch.tensor([1.0, 1.0, 0.0]) for image in images], **options)


def test_runs_are_compared_on_the_same_items_and_nothing_is_written(
    run_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = second_run(run_dir, monkeypatch)
    monkeypatch.setattr("impresa.run_dir.load.load", lambda path, device=None: (
        BlindToBlue if path == other else ColourModel)(config=CONFIG))  # fmt: skip
    words = ["eval", str(run_dir), str(other), "--data", str(folder)]
    assert main(words) == 0
    table = capsys.readouterr().out
    assert f"{folder}: 9 images" in table
    assert f"A  {run_dir}" in table
    assert f"B  {other}" in table
    assert "B - A" in table
    assert "no difference shown" in table
    assert "judged, each by itself" in table
    assert main([*words, "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["runs"] == [str(run_dir), str(other)]
    shot = tree["figures"]["zero_shot_accuracy"]
    assert shot["values"][0] == 1.0
    assert shot["differences"][0] is None
    found = shot["differences"][1]
    assert found["value"] == pytest.approx(shot["values"][1] - 1.0)
    assert found["interval"]["low"] <= found["value"] <= found["interval"]["high"]
    assert found["differs"] is (found["interval"]["high"] < 0)
    assert files(run_dir) == files(other) == ["config.yaml"]


def test_a_run_compared_with_itself_shows_no_difference(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = second_run(run_dir, monkeypatch)
    assert main(["eval", str(run_dir), str(other), str(other), "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["data"] == "shapes, test split"
    differences = [one for found in tree["figures"].values() for one in found["differences"][1:]]
    assert {one["value"] for one in differences} == {0.0}
    assert not any(one["differs"] for one in differences)


def test_one_model_is_in_memory_at_a_time_and_baselines_are_made_once(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = second_run(run_dir, monkeypatch)
    alive: list[weakref.ref[ColourModel]] = []
    most, baselines = [], []

    def load(path: Path, device: object = None) -> ColourModel:
        model = ColourModel(config=CONFIG)
        alive.append(weakref.ref(model))
        most.append(sum(one() is not None for one in alive))
        return model

    from impresa.tasks.alignment import evaluate

    real = evaluate._baselines
    monkeypatch.setattr("impresa.run_dir.load.load", load)
    monkeypatch.setattr(evaluate, "_baselines", lambda *rest: baselines.append(rest[2].positions) or real(*rest))
    assert main(["eval", str(run_dir), str(other), str(other)]) == 0
    assert most == [1, 1, 1]
    assert [len(positions) for positions in baselines] == [SHAPES.num_train, 0, 0]


def test_runs_of_two_kinds_are_refused(vlm: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for first, second, verb in ((run_dir, vlm, "answers questions"), (vlm, run_dir, "embeds")):
        assert main(["eval", str(first), str(second)]) == 2
        shown = capsys.readouterr()
        assert shown.err.startswith(f"{second}: {verb} and {first} ")
        assert shown.err.count("\n") == 1
        assert shown.out == ""


def test_runs_that_cannot_use_the_same_items_are_refused(
    run_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = second_run(run_dir, monkeypatch)
    loaded: list[Path] = []

    def load(path: Path, device: object = None) -> ColourModel:
        loaded.append(path)
        if len(loaded) == 2:  # a picture is gone by now
            (folder / "0.png").write_bytes(b"gone")
        return ColourModel(config=CONFIG)

    monkeypatch.setattr("impresa.run_dir.load.load", load)
    assert main(["eval", str(run_dir), str(other), "--data", str(folder)]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"{other}: of {folder} it can use other images, captions or questions than {run_dir};")
    assert shown.err.count("\n") == 1


def test_answering_runs_are_compared(vlm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(vlm)
    assert main(["eval", run, run, "--device", "cpu", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert {"exact_match", "token_f1", "rouge_l", "answer_loss", "perplexity"} <= figures.keys()
    assert any(name.startswith("exact_match:") for name in figures)
    assert figures["answer_loss"]["differences"][1]["value"] == 0


def test_a_linear_probe_is_fitted_on_the_labels_of_training(
    run_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, sample in enumerate(colour_source(30, labels=True).items):
        sample.image.save(folder / f"{i}.png")
        row = {"image": f"{i}.png", "caption": sample.captions[0], "label": sample.label}
        with (folder / "metadata.jsonl").open("a" if i else "w") as table:
            table.write(json.dumps(row) + "\n")
    dataset = replace(CONFIG.dataset, train_path=str(folder), val_path=str(folder))
    use(replace(CONFIG, dataset=dataset), monkeypatch)
    words = ["eval", str(run_dir), "--linear-probe"]
    assert main(words) == 0
    assert "linear probe accuracy" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    probe = json.loads(capsys.readouterr().out)["linear_probe"]
    assert (probe["accuracy"], probe["num_train"], probe["num_samples"], probe["classes"]) == (1.0, 30, 30, 6)


@pytest.mark.parametrize("case", ["no labels", "no scikit-learn"])
def test_a_probe_that_cannot_be_fitted_is_refused_in_one_line(
    run_dir: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if case == "no scikit-learn":
        monkeypatch.setattr("impresa.cli.eval.find_spec", lambda _: None)
    assert main(["eval", str(run_dir), "--linear-probe"]) == 2
    shown = capsys.readouterr()
    fault = {"no labels": "the training images have no labels", "no scikit-learn": "pip install 'impresa[probe]'"}
    assert fault[case] in shown.err
    assert shown.err.startswith("--linear-probe: ")
    assert shown.err.count("\n") == 1


def test_a_model_with_a_decoder_has_no_probe(vlm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(vlm), "--linear-probe", "--device", "cpu"]) == 2
    fault = "--linear-probe: a model with a decoder embeds nothing; name the run of an alignment\n"
    assert capsys.readouterr().err.endswith(fault)


def test_every_answer_is_written_where_it_is_asked_for(vlm: Path, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    assert main(["eval", str(vlm), "--split", "val", "--predictions", str(file)]) == 0
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert rows
    assert rows[0].keys() == {field.name for field in fields(Prediction)}
    own = (vlm / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["sample"] for line in own}.isdisjoint(row["sample"] for row in rows)


def test_predictions_of_what_answers_nothing_are_refused(
    vlm: Path, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([str(run_dir)], [str(vlm), str(vlm)]):
        assert main(["eval", *words, "--predictions", str(tmp_path / "a.jsonl")]) == 2
        assert capsys.readouterr().err.startswith("--predictions: ")
    assert main(["eval", str(vlm), "--predictions", str(tmp_path / "no/a.jsonl")]) == 2
    assert capsys.readouterr().err.startswith("--predictions: ")
    assert not (tmp_path / "a.jsonl").exists()
