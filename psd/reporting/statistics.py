"""Intervals and tests of a few numbers, one for each seed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from statistics import mean, stdev
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)

LEVEL = 0.05
FEW = 5  # rows that are told by their own 95% intervals; of more, one is apart from zero by luck too often


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half of the 95% interval of Student's t distribution; None for a single value.

    >>> middle, half = interval([1.0, 2.0, 3.0])
    >>> middle, round(half, 3)
    (2.0, 2.484)
    """
    if len(values) < 2:
        return mean(values), None
    from scipy.stats import t

    return mean(values), float(t.ppf(1 - LEVEL / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def p_value(values: Sequence[float]) -> float:
    """Two-sided p of Student's t test that the mean is zero, of two values or more: below 0.05 exactly where the
    interval does not hold zero.

    >>> round(p_value([1.0, 2.0, 3.0]), 3)  # t = 2 * 3**0.5, 2 degrees of freedom
    0.074
    """
    from scipy.stats import t

    middle, error = mean(values), stdev(values) / len(values) ** 0.5
    if error == 0:
        return float(middle == 0)
    return 2 * float(t.sf(abs(middle) / error, len(values) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the same order: those below a level are told apart with at most this chance that any of
    them is by luck (Holm 1979, "A simple sequentially rejective multiple test procedure").

    >>> holm([0.04, 0.01, 0.03])
    [0.06, 0.03, 0.06]
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[k]))
        adjusted[k] = highest
    return adjusted


def apart(rows: Mapping[Name, Sequence[float]]) -> dict[Name, bool]:
    """Which rows of paired differences are apart from zero, of those with two values or more.

    Up to five rows by their 95% intervals; of more, what survives Holm's correction at 5% over all of them.
    """
    found = {name: p_value(values) for name, values in rows.items() if len(values) > 1}
    adjusted = holm(list(found.values())) if len(found) > FEW else list(found.values())
    return {name: p < LEVEL for name, p in zip(found, adjusted, strict=True)}


def how_tested(number: int, what: str = "row") -> str:
    """What `apart` does with so many rows, in words."""
    holm_too = ", Holm's correction at 5% over all" if number > FEW else ""
    return f"{number} {what}{'s' * (number != 1)} tested{holm_too}"
