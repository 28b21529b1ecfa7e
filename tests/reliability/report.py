"""Print RELIABILITY.md's tables from what was tried.

    python tests/reliability/report.py TALLY     with what `make reliability` has noted, which becomes tally.json
    python tests/reliability/report.py TALLY short      the same of the tests' short form
    python tests/reliability/report.py           once more from tally.json

Beside it lie what is tried by hand and not by a test: mutants.json and by_hand.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TALLY, PAGE = HERE / "tally.json", HERE.parents[1] / "RELIABILITY.md"
BEGIN, END = "<!-- make reliability -->", "<!-- end -->"
SECTIONS = ("Faults", "Bad input", "Untrusted files", "Laws", "Mutants", "Versions", "Memory and time")
Rows = list[dict[str, Any]]


def collect(lines: str) -> Rows:
    """Rows of one section, thing and outcome added up, in the order of the sections and then of the alphabet."""
    times: dict[tuple[str, str, str], int] = {}
    for line in lines.splitlines():
        row = json.loads(line)
        key = (row["section"], row["what"], row["seen"])
        times[key] = times.get(key, 0) + row["tried"]
    ordered = sorted(times, key=lambda key: (SECTIONS.index(key[0]), key))
    return [dict(zip(("section", "what", "seen"), key, strict=True), tried=times[key]) for key in ordered]


def rows() -> Rows:
    """All that was tried, by tests and by hand."""
    tally: Rows = json.loads(TALLY.read_text(encoding="utf-8"))["rows"]
    return tally + [row for name in ("mutants.json", "by_hand.json") for row in json.loads((HERE / name).read_text())]


def tables(rows: Rows) -> str:
    parts = []
    for section in filter({row["section"] for row in rows}.__contains__, SECTIONS):
        own = [row for row in rows if row["section"] == section]
        total = sum(row["tried"] for row in own)
        lines = [f"| {row['what']} | {row['tried']:,} | {row['seen']} |" for row in own]
        parts.append("\n".join([f"## {section}: {total:,}", "", "| tried | times | seen |", "|---|---|---|", *lines]))
    return "\n\n".join(parts)


def filled(page: str) -> str:
    """The page with its tables made anew."""
    head, _, rest = page.partition(BEGIN)
    form = json.loads(TALLY.read_text(encoding="utf-8"))["form"]
    said = f"The figures of tests are those of their {form} form."
    return f"{head}{BEGIN}\n\n{said}\n\n{tables(rows())}\n\n{END}{rest.partition(END)[2]}"


def main(arguments: list[str]) -> None:
    if arguments:
        noted = collect(Path(arguments[0]).read_text(encoding="utf-8"))
        form = "short" if "short" in arguments else "long"
        TALLY.write_text(
            json.dumps({"form": form, "rows": noted}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
