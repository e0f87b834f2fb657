"""Sweeps and files become studies, and studies become variants that differ from each other and from the base."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from impresa.ablation.study import MAX_RUNS, NULL, Design, Study, make_study, variants_of
from impresa.cli.overrides import split_overrides
from impresa.config import load_experiment, to_yaml
from impresa.config.compose import load_tree, override_of, split_sweeps
from impresa.config.tree import lookup
from impresa.errors import ConfigError

LOSSES = """\
title: Which loss?
base: shapes
overrides: {trainer: {epochs: 2}, dataset.shapes.num_train: 500}
switches:
  loss:
    siglip: {losses.type: siglip}
    fixed temperature: {losses: {type: clip, learn_temperature: false}}
  vision_encoder.depth: [3, 4]
  vision_encoder.pooling: mean,cls
seeds: 3
metric: [recall_at_5, recall_at_1]
null: true
"""
GRID = """\
base: shapes
design: grid
switches:
  vision_encoder.use_perceiver: [true, false]
  vision_encoder.perceiver_num_layers: [2, 3]
seeds: [7, 1]
"""


def study_of(
    name: str,
    *overrides: str,
    seeds: int | Sequence[int] | None = None,
    metrics: Sequence[str] | None = None,
    design: Design | None = None,
    null: bool = False,
) -> Study:
    return make_study(name, overrides, seeds=seeds, metrics=metrics, design=design, null=null)


def names_of(study: Study) -> list[str]:
    return [variant.name for variant in variants_of(study)]


def lines_of(name: str, *overrides: str, **given: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        variants_of(study_of(name, *overrides, **given))
    assert all("\n" not in line for line in caught.value.lines)
    return list(caught.value.lines)


def written(folder: Path, text: str, name: str = "mine.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


SWEEPS = [
    ("losses.type=clip,siglip", ["clip", "siglip"]),
    ("+losses.type=choice(siglip)", ["siglip"]),
    ("vision_encoder.depth=range(2,5)", [2, 3, 4]),
    ("optimization.lr=range(0.25,1,0.25)", [0.25, 0.5, 0.75]),
    ("vision_encoder.mrl_dimensions=[64,32],[16]", [[64, 32], [16]]),
    ("vision_encoder.use_mrl=true,false", [True, False]),
    ("dataset.val_path=null,'a,b'", [None, "a,b"]),
    ("model=glob(*,exclude=h*)", ["base", "large", "tiny"]),
    ("vision_encoder.depth=sort(shuffle(3,1,2))", [1, 2, 3]),
]


@pytest.mark.parametrize(("text", "values"), SWEEPS)
def test_sweeps_are_read_as_hydra_reads_them_in_both_spellings(text: str, values: list[Any]) -> None:
    key, _, sweep = text.lstrip("+").partition("=")
    for words in ([text], [f"--{key}", sweep], [f"--{key}={sweep}"]):
        rest, overrides = split_overrides(words)
        if "." in key or not words[0].startswith("--"):
            assert split_sweeps("default", [*overrides, "seed=1"]) == (["seed=1"], {key: tuple(values)})
            assert not rest


@pytest.mark.parametrize("text", ["vision_encoder.depth=3", "name='a,b'", "name=a b", "losses.pairs=[image-text]", "x"])
def test_an_override_of_one_value_is_no_sweep(text: str) -> None:
    assert split_sweeps("shapes", [text]) == ([text], {})


NO_SWEEPS = [
    ("optimization.lr=interval(0,1)", "optimization.lr: interval(0,1) stands for endlessly many values; write range"),
    ("optimization.lr=range(0,1,0)", "optimization.lr: range(0,1,0) cannot be listed (range() arg 3 must not be zero)"),
    ("optimization.lr=range(0.5,1,0.0)", "optimization.lr: range(0.5,1,0.0) cannot be listed (Invalid range values"),
    ("optimization.lr=range(1,1)", "optimization.lr: range(1,1) stands for no values; list a few"),
    ("optimization.lr=range(0,1000000000)", "optimization.lr: range(0,1000000000) stands for more than 1000 values"),
    ("optimization.lr=glob(*)", "optimization.lr: glob(*) is for groups, and this is none; list the values"),
    ("model=glob(x*)", "model: glob(x*) matches none of base, huge, large and tiny; list the values"),
]


@pytest.mark.parametrize(("text", "line"), NO_SWEEPS)
def test_a_sweep_that_cannot_be_listed_is_refused(text: str, line: str) -> None:
    (found,) = lines_of("shapes", text)
    assert found.startswith(line)


VALUES: list[Any] = ["text", "a,b", "null", "1.0", "x y", "", "it's", "a\\'b", "[1]", "choice(a)", None, True, 3, 1e-4]
VALUES += [[0.9, 0.98], ["a", "b c", "1", "null"], [], [[1], ["x,y"]], 1e300, -2]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_of_yaml_comes_back_from_its_override(value: Any) -> None:
    for key in ("vision_encoder.depth", "labels.version" if isinstance(value, str) else "optimization.betas"):
        override = override_of(key, value)
        assert split_sweeps("shapes", [override]) == ([override], {})
        assert lookup(load_tree("shapes", [override]), key) == value


def test_each_value_is_flipped_alone_and_the_base_s_own_is_the_base() -> None:
    study = study_of(
        "shapes", "vision_encoder.memory.enabled=true,false", "losses.type=clip,siglip", "trainer.epochs=2"
    )
    assert study.overrides == ("trainer.epochs=2",)
    assert study.seeds == (0, 1, 2, 3, 4)
    assert study.metrics == ("recall_at_1",)
    assert study.design == "one-at-a-time"
    base, *others = variants_of(study)
    assert (base.name, base.overrides, base.seed_offset) == ("base", (), 0)
    assert [(each.name, each.overrides, each.seed_offset) for each in others] == [
        (text, (text,), 0) for text in ("vision_encoder.memory.enabled=false", "losses.type=siglip")
    ]


def test_a_grid_is_the_product_without_the_base_and_without_twins(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = study_of(written(tmp_path, GRID))
    assert study.seeds == (7, 1)
    assert study.design == "grid"
    with caplog.at_level(logging.WARNING):
        variants = variants_of(study)
    on, two = "vision_encoder.use_perceiver=true", "vision_encoder.perceiver_num_layers=2"
    assert [variant.overrides for variant in variants] == [(), (on,), (on, two)]
    assert variants[2].name == f"{on}, {two}"
    assert caplog.messages == [f"{two}: trains the same model as the base; it is left out"]


def test_a_file_says_it_all_and_the_command_line_goes_before_it(tmp_path: Path) -> None:
    file = written(tmp_path, LOSSES)
    study = study_of(file)
    assert study.title == "Which loss?"
    assert study.base == "shapes"
    assert study.null
    assert study.overrides == ("trainer.epochs=2", "dataset.shapes.num_train=500")
    assert (study.seeds, study.metrics) == ((0, 1, 2), ("recall_at_5", "recall_at_1"))
    variants = {variant.name: variant.overrides for variant in variants_of(study)}
    assert list(variants) == [
        *("base", "loss=siglip", "loss=fixed temperature", "vision_encoder.depth=3"),
        *("vision_encoder.pooling=mean", "vision_encoder.pooling=cls", "null"),
    ]
    assert variants["loss=fixed temperature"] == ("losses.type=clip", "losses.learn_temperature=false")

    changed = study_of(
        file,
        "vision_encoder.depth=5,6",
        "trainer.epochs=3",
        "optimization.lr=1e-3,2e-3",
        seeds=1,
        metrics=["recall_at_10"],
    )
    assert changed.overrides[-1] == "trainer.epochs=3"
    assert (changed.seeds, changed.metrics) == ((0,), ("recall_at_10",))
    assert [(switch.key, switch.values) for switch in changed.switches][1:] == [
        ("vision_encoder.depth", ("5", "6")),
        ("vision_encoder.pooling", ("mean", "cls")),
        ("optimization.lr", ("0.001", "0.002")),
    ]


def test_a_name_of_the_file_is_a_group_for_the_command_line(tmp_path: Path) -> None:
    file = written(tmp_path, LOSSES)
    assert study_of(file, "loss=fixed temperature,siglip").switches[0].values == ("fixed temperature", "siglip")
    based = study_of(file, "loss=siglip")
    assert based.overrides[-1] == "losses.type=siglip"
    assert "loss=siglip" not in names_of(based)
    hint = "loss: has no variant sigmoid; did you mean siglip? there are siglip and fixed temperature"
    assert lines_of(file, "loss=sigmoid,siglip") == lines_of(file, "loss=sigmoid") == [hint]


def test_a_base_may_lie_beside_its_study(tmp_path: Path) -> None:
    written(tmp_path, "name: own\ndefaults: [shapes]\nvision_encoder: {depth: 2}", "own.yaml")
    study = study_of(written(tmp_path, "base: own.yaml\nswitches: {vision_encoder.depth: [2, 3]}"))
    assert load_experiment(study.base).name == "own"
    assert names_of(study) == ["base", "vision_encoder.depth=3"]


def test_shipped_studies_go_by_name_and_by_path_and_are_no_configs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shipped" / "studies").mkdir(parents=True)
    written(tmp_path / "shipped", "name: own", "own.yaml")
    file = written(tmp_path / "shipped" / "studies", "base: own\nswitches: {losses.type: siglip}", "losses.yaml")
    monkeypatch.setattr("impresa.config.paths.shipped_folder", lambda: tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    for name in ("studies/losses", "configs/studies/losses.yaml", file):
        study = study_of(name)
        assert (study.base, [switch.key for switch in study.switches]) == ("own", ["losses.type"])
        with pytest.raises(ConfigError, match=r"losses.yaml: is a study of several configs.* `impresa ablate`$"):
            load_experiment(name)
    assert lines_of("losses")[0].startswith("losses: unknown config; did you mean studies/losses? shipped are own and")
    with pytest.raises(ConfigError, match=r"^studies/loses: unknown config; did you mean studies/losses"):
        load_experiment("studies/loses")
    with pytest.raises(ConfigError, match=r"^losses: unknown config; shipped are own$"):
        load_experiment("losses")


FAULTS = [
    ("base: shapes\nswiches: {}", ["swiches: unknown key; did you mean switches?"]),
    ("switches: {losses.type: siglip}", ["mine.yaml: base: is missing; name the config that the others are"]),
    (
        "base: shapes\ndesign: gridd\nseeds: 0",
        ["seeds: got 0; it must be a whole number", "design: got 'gridd';"],
    ),
    ("base: shapes\nswitches: [losses.type]", ["switches: got ['losses.type']; it must be a mapping of keys"]),
    (
        "base: shapes\nswitches: {losses: {type: [clip]}}",
        ["switches.losses.type: got ['clip']; a list of values"],
    ),
    (
        "base: shapes\nswitches: {a: [], b: {}}",
        ["switches.a: has no values;", "switches.b: has no variants;"],
    ),
    (
        "base: shapes\nswitches: {a: [{losses.type: clip}]}",
        ["switches.a: {losses.type: 'clip'} has no name; give"],
    ),
    ("base: shapes\nswitches: {a: {'b,c': {seed: 1}}}", ["switches.a: 'b,c' cannot name a variant; use letters"]),
    ("base: shapes\nswitches: {a=b: [1], ~c: [2]}", ["switches: 'a=b' cannot name a switch;", "switches: '~c' cannot"]),
    ("base: shapes\nswitches: {a: {b: {seed: 1}}}", ["a: sets the seed, which is no switch; all variants are trained"]),
    ("base: shapes\noverrides: {optimization.lrr: 1}\nnull: true", ["optimization.lrr: unknown key; did you mean"]),
    ("base: mine.yaml\nswitches: {losses.type: siglip}", ["is a study of several configs, and none itself; run it"]),
    ("base: shapes", ["nothing is compared; give a switch its values, as in losses.type=clip,siglip"]),
]


@pytest.mark.parametrize(("text", "lines"), FAULTS)
def test_faults_of_a_file_are_one_line_each(text: str, lines: list[str], tmp_path: Path) -> None:
    found = lines_of(written(tmp_path, text))
    assert len(found) == len(lines)
    assert all(line in whole for line, whole in zip(lines, found, strict=True)), found


REFUSED = [
    (
        "vision_encoder.depth=choice(4)",
        "vision_encoder.depth: 4 is what the base has, so there is nothing to compare",
    ),
    ("vision_encoder.depth=3", "shapes: nothing is compared; give a switch its values"),
    (
        "seed=1,2",
        "seed: sets the seed, which is no switch; all variants are trained on the same seeds, given",
    ),
    (
        "vision_encoder.dept=1,choice",
        "vision_encoder.dept=1: vision_encoder.dept: unknown key; did you mean vision",
    ),
    ("vision_encoder.num_heads=4,3", "vision_encoder.num_heads=3: vision_encoder.num_heads: 3 heads do not divide"),
    (
        "vision_encoder.perceiver_num_layers=3,4",
        "vision_encoder.perceiver_num_layers=4: changes nothing, for ",
    ),
    ("vision_encoder.mrl_dimensions=[64],[256,128,64]", "vision_encoder.mrl_dimensions=[64]: changes nothing, for "),
    (
        "losses.siglip_bias=auto,-5.0",
        "losses.siglip_bias=-5.0: changes nothing, for losses.siglip_bias is for",
    ),
    ("dataset.num_workers=0,2", "dataset.num_workers=2: changes nothing, for dataset.num_workers is none of the keys"),
    (
        "name=shapes,circles",
        "name=circles: changes nothing, for name is none of the keys that results depend on;",
    ),
    (
        "dataset.train_path=shapes,nowhere",
        "dataset.train_path=nowhere: dataset.train_path (training.data.t",
    ),
    (
        "vision_encoder.depth=range(1,300)",
        f"study: 300 variants with 5 seeds are 1500 runs, more than {MAX_RUNS};",
    ),
]


@pytest.mark.parametrize(("sweep", "line"), REFUSED)
def test_what_cannot_be_compared_is_refused_by_name(sweep: str, line: str) -> None:
    assert lines_of("shapes", sweep)[0].startswith(line)


def test_a_value_that_does_nothing_is_refused_where_the_base_has_another_than_the_default() -> None:
    line = lines_of("shapes", "vision_encoder.perceiver_num_layers=3,4", "vision_encoder.perceiver_num_layers=4")
    assert line[0].startswith("vision_encoder.perceiver_num_layers=3: changes nothing, for vision_encoder.perc")


def test_a_grid_refuses_a_dead_switch_and_two_switches_of_one_key(tmp_path: Path) -> None:
    dead = lines_of("shapes", "losses.type=clip,siglip", "losses.mrl_weight=1,2", design="grid")
    assert dead == ["losses.mrl_weight=2: changes nothing, for " + dead[0].partition(", for ")[2]]
    twice = "base: shapes\nswitches: {loss: {a: {vision_encoder.depth: 3}}, vision_encoder.depth: [2, 5]}\ndesign: grid"
    assert lines_of(written(tmp_path, twice)) == [
        "vision_encoder.depth: sets vision_encoder.depth as loss does, and a grid has all combinations; "
        "make one switch of the two"
    ]


def test_memory_position_is_a_control_and_no_dead_switch() -> None:
    sweep = "vision_encoder.memory.memory_position=prepend,append"
    study = study_of("shapes", sweep)
    assert names_of(study) == ["base", "vision_encoder.memory.memory_position=append"]
    off = lines_of(
        "shapes", "vision_encoder.memory.memory_position=append,prepend", "vision_encoder.memory.enabled=false"
    )
    assert "is for vision_encoder.memory.enabled" in off[0]


def test_equal_configs_under_two_names_are_one_variant(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "base: shapes\nswitches: {loss: {one: {losses.type: siglip}, two: {losses.type: siglip, name: other}}}"
    with caplog.at_level(logging.WARNING):
        assert names_of(study_of(written(tmp_path, text))) == ["base", "loss=one"]
    assert caplog.messages == ["loss=two: trains the same model as loss=one; it is left out"]


def test_the_null_control_has_seeds_of_its_own_that_stay_when_seeds_are_added() -> None:
    offsets = set()
    for seeds in (1, 5, 8, [3, 1_000_003], [2**32 - 1]):
        study = study_of("shapes", seeds=seeds, null=True)
        null = variants_of(study)[-1]
        moved = {seed + null.seed_offset for seed in study.seeds}
        assert null.name == NULL
        assert moved.isdisjoint(study.seeds)
        assert min(moved) >= 0
        assert max(moved) < 2**32
        offsets.add(null.seed_offset if isinstance(seeds, int) else 0)
    assert len(offsets - {0}) == 1
    assert lines_of("shapes", seeds=[0, 2**32 - 1], null=True)[0].startswith("seeds: leave the null control no others")


def test_seeds_are_counted_from_the_base_s_own_or_listed() -> None:
    switch = "losses.type=clip,siglip"
    assert study_of("shapes", switch, "seed=7", seeds=2).seeds == (7, 8)
    assert study_of("shapes", switch, seeds=[5, 2]).seeds == (5, 2)
    assert lines_of("shapes", switch, "seed=7", seeds=[1, 2]) == [
        "seed: is given beside the list of seeds, which takes its place; leave it out"
    ]
    for wrong in ([], [1, 1], [-1], [2**32]):
        assert lines_of("shapes", switch, seeds=wrong)[0].endswith("give different whole numbers from 0 to 4294967295")
    for number in (0, -3, 10**12):
        assert lines_of("shapes", switch, seeds=number) == [
            f"seeds: got {number}; it must be 1 to {MAX_RUNS}, or a list of seeds"
        ]


MRL = ("vision_encoder.use_mrl=true", "vision_encoder.mrl_dimensions=[64,16]")


def test_metrics_are_decided_and_known_beforehand() -> None:
    switch = "optimization.lr=1e-3,2e-3"
    study = study_of("shapes", switch, *MRL, metrics=["recall_at_1@16", "recall_at_1", "recall_at_1"])
    assert study.metrics == ("recall_at_1@16", "recall_at_1")
    assert len(names_of(study)) == 3
    refused = {
        "recall_at_2": "metric: recall_at_2 is no figure of this experiment; did you mean recall_at_5? there are",
        "exact_match": "metric: exact_match is no figure of this experiment; ",
        "zero_shot_accuracy": "metric: zero_shot_accuracy is no figure of this experiment; ",
        "recall_at_1@32": "metric: recall_at_1@32 is at no Matryoshka dimension; there are 64 and 16",
    }
    for name, line in refused.items():
        assert lines_of("shapes", switch, *MRL, metrics=["recall_at_1", name])[0].startswith(line)
        assert lines_of("shapes", switch, *MRL, metrics=[name])[0].startswith(line)


def test_the_judge_must_be_measured_in_every_variant_other_metrics_in_one() -> None:
    off = "vision_encoder.use_mrl=true,false"
    assert lines_of("shapes", *MRL, off, metrics=["recall_at_1@16"]) == [
        "vision_encoder.use_mrl=false: metric recall_at_1@16 needs vision_encoder.use_mrl and no decoder; "
        "losses.mrl_weight=0 beside it measures there without training there"
    ]
    assert len(names_of(study_of("shapes", *MRL, off, metrics=["recall_at_1", "recall_at_1@16"]))) == 2


def test_the_number_of_runs_is_bounded_before_anything_is_composed() -> None:
    many = [f"{key}=range(1,900)" for key in ("vision_encoder.depth", "text_encoder.depth", "optimization.lr")]
    number = 899**3 + 1
    with pytest.raises(ConfigError, match=rf"^study: {number} variants with 2 seeds are {2 * number} runs, more"):
        make_study("shapes", many, seeds=2, metrics=None, design="grid", null=False)


def test_the_study_of_the_guide_can_be_planned(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "ablations.md").read_text(encoding="utf-8")
    study = study_of(written(tmp_path, guide.split("```yaml\n")[1].split("```")[0]))
    assert names_of(study) == [
        *("base", "vision_encoder.depth=3", "vision_encoder.depth=5", "loss=siglip", "loss=fixed temperature", "null")
    ]


def test_overrides_of_a_file_may_be_a_list_and_its_base_a_run(tmp_path: Path) -> None:
    run = written(tmp_path, to_yaml(load_experiment("shapes", ["seed=4"])), "config.yaml")
    text = "base: config.yaml\noverrides: [trainer.epochs=2, 'labels.version=a b']\nswitches: {losses.type: siglip}"
    study = study_of(written(tmp_path, text))
    assert study.base == run
    assert study.seeds[0] == 4
    assert study.overrides == ("trainer.epochs=2", "labels.version=a b")
    several = written(tmp_path, text.replace("trainer.epochs=2", "'trainer.epochs=2,3'"))
    assert lines_of(several) == ["trainer.epochs: 2,3 stands for several runs; give one value, a comma in quotes"]
