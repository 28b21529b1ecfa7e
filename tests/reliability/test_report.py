"""RELIABILITY.md is what was noted."""

from __future__ import annotations

import json

import report


def test_the_page_holds_the_tables_of_what_was_noted():
    page = report.PAGE.read_text(encoding="utf-8")
    assert report.filled(page) == page


def test_rows_of_one_thing_and_outcome_are_added_up():
    row = {"section": "Laws", "what": "x", "seen": "held", "tried": 2}
    lines = "\n".join(map(json.dumps, [row, {**row, "what": "y"}, row, {**row, "section": "Faults"}]))
    assert [(r["section"], r["what"], r["tried"]) for r in report.collect(lines)] == [
        ("Faults", "x", 2),
        ("Laws", "x", 4),
        ("Laws", "y", 2),
    ]
