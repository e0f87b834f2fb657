"""Scalar types of the configuration: strict, finite and bounded, so that the annotation is the whole rule.

Strict means that `true` is no number and `"12"` is no integer; a float accepts a whole number.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AllowInfNan, Strict, StringConstraints

Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]
Name = Annotated[str, Strict(), StringConstraints(min_length=1)]
Int = Annotated[int, Strict()]
Count = Annotated[int, Strict(), Ge(1)]
CountOrZero = Annotated[int, Strict(), Ge(0)]
Float = Annotated[float, Strict(), AllowInfNan(False)]
Positive = Annotated[float, Strict(), AllowInfNan(False), Gt(0)]
NonNegative = Annotated[float, Strict(), AllowInfNan(False), Ge(0)]
Fraction = Annotated[float, Strict(), AllowInfNan(False), Ge(0), Le(1)]
"""0 to 1, both included."""
Rate = Annotated[float, Strict(), AllowInfNan(False), Ge(0), Lt(1)]
"""A probability of dropping something: 0 keeps all, 1 would drop everything and is refused."""
KeepCount = Annotated[int, Strict(), Ge(-1)]
"""How many to keep: 0 none, -1 all."""
