"""Print RELIABILITY.md's tables from what the tests have noted.

python tests/reliability/report.py TALLY     a run of `make reliability` becomes tests/reliability/tally.json, and the tables
python tests/reliability/report.py           the tables again, from tests/reliability/tally.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORD, PAGE = Path(__file__).with_name("tally.json"), ROOT / "RELIABILITY.md"
BEGIN, END = "<!-- make reliability -->", "<!-- end -->"
SECTIONS = ("Faults", "Bad input", "Untrusted files", "Laws", "Mutants", "Versions", "Memory and time")


def collect(lines: str) -> list[dict[str, object]]:
    """Rows of one section, thing and outcome added up, in the order of the sections and then of their coming."""
    rows: dict[tuple[str, str, str], int] = {}
    for line in lines.splitlines():
        row = json.loads(line)
        key = (row["section"], row["what"], row["seen"])
        rows[key] = rows.get(key, 0) + row["tried"]
    ordered = sorted(rows, key=lambda key: SECTIONS.index(key[0]))
    return [{"section": s, "what": w, "seen": o, "tried": rows[s, w, o]} for s, w, o in ordered]


def tables(rows: list[dict[str, object]]) -> str:
    parts = []
    for section in SECTIONS:
        own = [row for row in rows if row["section"] == section]
        if own:
            lines = [f"| {row['what']} | {row['tried']:,} | {row['seen']} |" for row in own]
            total = sum(int(str(row["tried"])) for row in own)
            parts.append(
                "\n".join([f"## {section}: {total:,}", "", "| tried | times | seen |", "|---|---|---|", *lines])
            )
    return "\n\n".join(parts)


def filled(page: str, rows: list[dict[str, object]]) -> str:
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{tables(rows)}\n\n{END}{tail}"


def main(arguments: list[str]) -> None:
    if arguments:
        rows = collect(Path(arguments[0]).read_text(encoding="utf-8"))
        RECORD.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    rows = json.loads(RECORD.read_text(encoding="utf-8"))
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
