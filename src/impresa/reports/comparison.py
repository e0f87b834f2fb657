"""Tables of runs that are compared with the first of them, item by item."""

from __future__ import annotations

from string import ascii_uppercase

from impresa.evaluation.comparison import Compared, Comparison, Difference
from impresa.evaluation.figures import FigureKind, kind_of
from impresa.reports.tables import Row, Table, signed

VERDICTS = {True: "differs", False: "no difference shown", None: "-"}


def comparison_tables(comparison: Comparison) -> list[Table]:
    """A table for each run after the first, with the figures of both and their difference."""
    return [_table(comparison, place) for place in range(1, len(comparison.runs))]


def letter(place: int) -> str:
    """The name of a run in the tables: A, B, ..., then 27, 28, ..."""
    return ascii_uppercase[place] if place < len(ascii_uppercase) else str(place + 1)


def reading(comparison: Comparison) -> str:
    """How to read the tables, and how many of the verdicts chance alone would give."""
    verdicts = [one.differs for found in comparison.figures.values() for one in found.differences if one is not None]
    num = sum(verdict is not None for verdict in verdicts)
    return (
        f"Intervals: 95%, paired over the same items (BCa bootstrap). {num:,} differences are judged, each by itself: "
        f"one in twenty “differs” by chance where nothing does, so name the one that decides beforehand. "
        "Another seed of training is not in the intervals; `impresa ablate` has it."
    )


def _table(comparison: Comparison, place: int) -> Table:
    groups: dict[str, list[Row]] = {}
    for name, found in comparison.figures.items():
        if found.differences[place] is not None:
            heading, label = _place_of(name)
            groups.setdefault(heading, []).append(_row(label, kind_of(name), found, place))
    second = letter(place)
    return Table(
        f"{second} and A",
        columns=("A", second, f"{second} - A", "95% interval", "verdict"),
        groups={heading: tuple(rows) for heading, rows in groups.items()},
    )


def _place_of(name: str) -> tuple[str, str]:
    """Heading and label of a figure: the direction, the dimension or the type of question stands above."""
    base, at, suffix = name.partition("@") if "@" in name else name.partition(":")
    label = kind_of(base).label
    direction, _, rest = label.rpartition(" ") if " → " in label else ("", "", label)
    if " → " in label and label.endswith(" rank"):
        direction, _, word = direction.rpartition(" ")
        rest = f"{word} {rest}"
    within = {"@": f"at {suffix}{'' if direction else ' dimensions'}", ":": suffix, "": ""}[at]
    return " ".join(filter(None, (direction, within))), rest


def _row(label: str, kind: FigureKind, found: Compared, place: int) -> Row:
    one = found.differences[place]
    assert one is not None
    values = (found.values[0], found.values[place])
    cells = tuple("-" if value is None else format(value, kind.format) for value in values)
    return Row(label, (*cells, *_difference(one, kind), VERDICTS[one.differs]))


def _difference(one: Difference, kind: FigureKind) -> tuple[str, str]:
    """The difference and its bounds, in points for shares."""

    if one.interval is None:
        return signed(one.value, kind), "-"
    return signed(one.value, kind), f"{signed(one.interval.low, kind)} to {signed(one.interval.high, kind)}"
