"""Findings of a study: each metric compared, and in plain words."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from impresa.ablation.results import StudyResult
from impresa.ablation.statistics import LEAST_SEEDS, Comparison, Difference, Verdict, compare
from impresa.ablation.study import NULL, Variant
from impresa.evaluation.figures import FigureKind, kind_of
from impresa.foreign_text import printable

MARKS: dict[Verdict, str] = {"better": "▲", "worse": "▼", "no difference shown": "●", "no verdict": "○"}
"""Signs of the verdicts, which tell them apart without colours."""
_VALUE = 24
"""Characters of a value in a short name; of a longer one, its ends."""


@dataclass(frozen=True)
class Findings:
    """A study's result with a comparison of each metric."""

    result: StudyResult
    comparisons: dict[str, Comparison]
    """By metric, the judge first."""

    @property
    def judge(self) -> Comparison:
        return self.comparisons[self.result.judge]

    @property
    def kind(self) -> FigureKind:
        """Of the judge."""
        return printable_kind(self.result.judge)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """A name for each variant: its changed keys in full."""
        return tuple(map(_name, self.result.variants))

    @cached_property
    def short_names(self) -> tuple[str, ...]:
        """The same with each key cut to as few of its last words as tell it from the others; a name that a study gives
        stays as it is."""
        return _short_names(self.result.variants)


@dataclass(frozen=True)
class Headline:
    """A variant and its verdict in words."""

    name: str
    verdict: Verdict
    text: str


def find(result: StudyResult) -> Findings:
    """Compare the variants of a study on each of its metrics."""
    blocked = [variant.seed_offset == 0 for variant in result.variants]
    names = _short_names(result.variants)
    return Findings(
        result,
        {
            metric: compare(result.scores(metric), kind_of(metric).higher_is_better, blocked=blocked, names=names)
            for metric in dict.fromkeys(result.study.metrics)
        },
    )


def printable_kind(metric: str) -> FigureKind:
    """How a metric is shown; its name may hold words of the data."""
    kind = kind_of(metric)
    return replace(kind, label=printable(kind.label))


def verdicts(findings: Findings) -> list[Verdict]:
    """Those that occur, in the order of `MARKS`."""
    found = set(map(verdict_of, findings.judge.differences[1:]))
    return [verdict for verdict in MARKS if verdict in found]


def verdict_of(difference: Difference | None) -> Verdict:
    return difference.verdict if difference else "no verdict"


def has_interval(difference: Difference) -> bool:
    return math.isfinite(difference.low) and math.isfinite(difference.high)


def lead(findings: Findings) -> str:
    """The sentence on top: what was changed, and how often it mattered."""
    result, label = findings.result, findings.kind.label
    judged = [
        verdict_of(difference)
        for variant, difference in zip(result.variants, findings.judge.differences, strict=True)
        if variant.overrides
    ]
    found, seeds = Counter(judged), len(result.study.seeds)
    if not judged:
        return "No switch was flipped: there is nothing to compare."
    if not result.with_status("finished"):
        return "No run has finished yet."
    if seeds < LEAST_SEEDS:
        return f"No verdict, estimates only: {count(seeds, 'seed')}, and verdicts need {LEAST_SEEDS}."
    parts = [f"{found[verdict]} {verdict}" for verdict in ("better", "worse") if found[verdict]]
    if found["no difference shown"]:
        parts.append(f"for {found['no difference shown']} no difference was shown")
    if found["no verdict"]:
        parts.append(f"{found['no verdict']} without a verdict")
    variants = count(len(judged), "variant")
    return f"Of {variants}, compared with the base on {label} over {seeds} seeds: {', '.join(parts) or 'none'}."


def headlines(findings: Findings) -> list[Headline]:
    """Every variant's verdict in words, the clear ones first, the largest differences first."""
    found = []
    names, differences = findings.names, findings.judge.differences
    for variant, name, difference in zip(findings.result.variants, names, differences, strict=True):
        if difference is not None and variant.name != NULL:
            line = Headline(name, difference.verdict, _in_words(difference, findings.kind))
            found.append((list(MARKS).index(difference.verdict), -abs(difference.mean), line))
    return [line for *_, line in sorted(found, key=lambda item: item[:2])]


def notes(findings: Findings) -> Iterator[str]:
    """Limits of the result: runs that are missing or failed, metrics that were not measured; and the control's."""
    result = findings.result
    if missing := result.with_status("missing"):
        yield f"Unfinished: {len(missing)} of {count(len(result.runs), 'run')} are missing, and verdicts may change."
    if failed := result.with_status("failed"):
        yield f"{count(len(failed), 'run')} of {len(result.runs)} failed; they are named at the end."
    finished = result.with_status("finished")
    for metric in findings.comparisons:
        without = [run for run in finished if metric not in run.figures]
        if without:
            yield f"{printable(metric)} was not measured in {len(without)} of {count(len(finished), 'finished run')}."
    for name, variant in zip(findings.names[1:], result.variants[1:], strict=True):
        if _is_base_again(result, variant):
            yield f"{name} has the numbers of the base to the last digit with every seed: it changed nothing here."
    for variant, difference in zip(result.variants, findings.judge.differences, strict=True):
        if variant.name != NULL or difference is None or difference.verdict == "no verdict":
            continue
        found = "shows no difference, as it must"
        if difference.verdict != "no difference shown":
            words = _in_words(difference, findings.kind)
            found = f"is {words}: chance in one study of twenty, else a reason to doubt the other verdicts"
        yield f"The null control, which differs from the base by its seeds alone, {found}."


def _is_base_again(result: StudyResult, variant: Variant) -> bool:
    """True if all runs that a variant and the base have with equal seeds came to equal figures and curves."""
    runs = zip(result.runs_of(variant), result.runs_of(result.variants[0]), strict=True)
    pairs = [pair for pair in runs if all(run.figures for run in pair)] if not variant.seed_offset else []
    return bool(pairs) and all((run.figures, run.curves) == (base.figures, base.curves) for run, base in pairs)


def _in_words(difference: Difference, kind: FigureKind) -> str:
    """`worse by 3.1 points (1.2 to 5.0)`; without a difference, those that the interval still allows."""
    unit = f" {kind.unit}" if kind.unit else ""
    gain = 1 if kind.higher_is_better else -1
    mean = gain * difference.mean
    low, high = sorted((gain * difference.low, gain * difference.high))
    if difference.verdict in ("better", "worse"):
        sign = 1 if difference.verdict == "better" else -1
        low, high = sorted((sign * low, sign * high))
        return (
            f"{difference.verdict} by {amount(sign * mean, kind)}{unit} ({amount(low, kind)} to {amount(high, kind)})"
        )
    if difference.verdict == "no verdict":
        side = "better" if mean > 0 else "worse"
        found = f"{amount(abs(mean), kind)}{unit} {side}" if mean else "no difference"
        return f"{found} on average, no verdict ({count(difference.num_seeds, 'shared seed')})"
    if low < 0 < high:
        allowed = f"{amount(-low, kind)}{unit} worse to {amount(high, kind)} better"
    elif low >= 0:
        allowed = f"{amount(low, kind)} to {amount(high, kind)}{unit} better"
    else:
        allowed = f"{amount(-high, kind)} to {amount(-low, kind)}{unit} worse"
    return f"no difference shown (could be {allowed})"


def amount(difference: float, kind: FigureKind, sign: str = "") -> str:
    """A difference of figures in the unit of its kind; `sign` "+" shows the sign of positive ones too."""
    return format(difference * kind.scale, sign + kind.format.replace("%", "f")).replace("-", "\N{MINUS SIGN}")


def wrapped(name: str, width: int) -> list[str]:
    """The lines of a name, broken after a space or a sign that parts its words."""
    lines = [""]
    for word in re.findall(r"[^ .,/=_-]*[ .,/=_-]*", name):
        for piece in (word[i : i + width] for i in range(0, len(word), width)):
            if len(lines[-1]) + len(piece.rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    return [line.rstrip() for line in lines]


def count(number: int, noun: str) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _name(variant: Variant) -> str:
    return "null (the base with other seeds)" if variant.name == NULL else printable(variant.name)


def _short_names(variants: Sequence[Variant]) -> tuple[str, ...]:
    names = []
    keys = {override.partition("=")[0] for variant in variants for override in variant.overrides}
    for variant in variants:
        if variant.name != ", ".join(variant.overrides):
            names.append(printable(variant.name))
            continue
        changes = []
        for override in variant.overrides:
            key, _, value = override.partition("=")
            cut = value if len(value) <= _VALUE else f"{value[: _VALUE // 2]}…{value[-_VALUE // 2 :]}"
            changes.append(f"{_shortest(key, keys)}={cut}")
        names.append(printable(", ".join(changes)))
    return tuple(names)


def _shortest(key: str, keys: set[str]) -> str:
    """As few of a key's last words as no other key ends in."""
    words = key.split(".")
    ends = [".".join(words[-n:]) for n in range(1, len(words) + 1)]
    return next((end for end in ends if not any(k != key and f".{k}".endswith(f".{end}") for k in keys)), key)
