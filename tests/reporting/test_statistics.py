"""Intervals, p-values and Holm's correction."""

from __future__ import annotations

import math

import pytest

from psd.reporting import statistics

EDGE = [-1.0, 0.0, 1.0]  # its mean of 0 lies anywhere by a shift; its half interval is 4.302652729911275 / 3**0.5


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_less_and_never_falls():
    # sorted .005, .01, .03, .04 times 4, 3, 2, 1: .02, .03, .06, .04; the last may not be below the one before it
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_stays_a_probability():
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]


def test_holm_of_one_p_value_is_that_value():
    assert statistics.holm([0.04]) == [0.04] and statistics.holm([]) == []


@pytest.mark.parametrize("share", [0.5, 0.99, 1.01, 2.0])
def test_a_p_value_is_below_5_percent_exactly_where_the_interval_does_not_hold_zero(share):
    _, half = statistics.interval(EDGE)
    values = [value + share * half for value in EDGE]
    assert (statistics.p_value(values) < 0.05) == (share > 1)


def test_a_p_value_with_one_degree_of_freedom_is_that_of_cauchy():
    # t = mean / (s / sqrt 2) = 3 of [1, 2]; two-sided p = 1 - 2 atan(t) / pi
    assert statistics.p_value([1.0, 2.0]) == pytest.approx(1 - 2 * math.atan(3) / math.pi)


def test_differences_without_any_spread_are_apart_from_zero_unless_they_are_zero():
    assert statistics.apart({"zero": [0.0, 0.0], "one": [1.0, 1.0]}) == {"zero": False, "one": True}


def rows(n: int) -> dict[str, list[float]]:
    """n rows of differences, each alone just apart from zero: p = 0.0497."""
    _, half = statistics.interval(EDGE)
    return {f"row{k}": [value + 1.003 * half for value in EDGE] for k in range(n)}


def test_five_rows_are_told_by_their_own_intervals():
    assert all(statistics.apart(rows(5)).values())


def test_of_six_rows_none_that_is_apart_by_luck_survives_holm():
    assert not any(statistics.apart(rows(6)).values())


def test_of_six_rows_one_that_is_far_apart_survives_holm():
    tested = statistics.apart({**rows(6), "far": [10.0, 10.1, 10.2]})
    assert [name for name, is_apart in tested.items() if is_apart] == ["far"]


def test_a_row_with_one_value_is_not_tested():
    assert statistics.apart({"one": [5.0], **rows(1)}) == {"row0": True}


def test_the_words_say_how_many_were_tested_and_how():
    assert statistics.how_tested(1) == "1 row tested"
    assert statistics.how_tested(5) == "5 rows tested"
    assert statistics.how_tested(6) == "6 rows tested, Holm's correction at 5% over all"
