"""Tables of records: what `psd report` prints and README shows."""

from __future__ import annotations

import io
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from csv import DictWriter
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from psd.checks import Refused
from psd.training import config
from psd.training.records import Record

BASELINE = "cross_entropy"
CONTROL = "pair_cross_entropy"  # the same images, steps and batches as the pair methods have
PROTOCOL = ("precision", "accumulate", "sync_batchnorm")  # of the settings in `run`, those that shape a result
TUNED = (("data", "batch_size"), ("optimizer", "lr"))  # may differ in a table, whose columns then tell
BLOCK = re.compile(r"(<!-- psd report (?P<paths>[^>]*?) -->\n)(?P<table>.*?)(<!-- end of psd report -->)", re.DOTALL)


def report(paths: Iterable[str | os.PathLike[str]], costs: bool = False) -> str:
    """Markdown tables of records, one for each data set, model and budget, one row for each method.

    Mean over seeds ± half of the 95% t-interval. Differences in top-1 to cross-entropy, that on single images and that
    on the same pairs, are paired by seed. Everything is measured after the last epoch. A column counts the seeds where
    rows have different ones.

    Args:
        paths: record files, or folders that are searched for them.
        costs: with columns for the image passes of a run, the forwards of a step's images, and peak memory.

    Raises:
        ValueError: no record there, a file that is none, one run twice, runs of one row with different settings, runs
            of one table with different protocols: data, augmentation, optimiser, precision, test images.
    """
    tables = []
    for records in groups(paths):
        first = records[0]
        tables.append(f"{heading(first)}\n\n{_table(records, costs)}\n\n{_caption(records)}\n")
    return "\n".join(tables)


def csv(paths: Iterable[str | os.PathLike[str]]) -> str:
    """The same as comma-separated values: one line for each row of each table, means and half intervals apart.

    Errors as in `report`.
    """
    out = io.StringIO()
    lines = [line for records in groups(paths) for line in _numbers(records)]
    writer = DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def groups(paths: Iterable[str | os.PathLike[str]]) -> list[list[Record]]:
    """The records under `paths`, a list for each table, cross-entropy first in each. Errors as in `report`."""
    found: dict[str, tuple[Path, Record]] = {}
    for file in _files([Path(path) for path in paths]):
        record = Record.read(file)
        if record.name in found and file.resolve() != found[record.name][0].resolve():
            raise Refused(f"{file} and {found[record.name][0]} are records of one run, {record.name}; name one")
        found[record.name] = (file, record)
    tables: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for _, record in found.values():
        tables[record.data, record.model, record.budget].append(record)
    for records in tables.values():
        records.sort(key=lambda r: (r.variant != BASELINE, r.variant, r.seed))
        _check_rows(records)
        _check_protocol(records)
    return [tables[key] for key in sorted(tables)]


def heading(record: Record) -> str:
    """The title of the table that a record stands in."""
    budget = record.config["budget"]
    size = f"{budget['epochs']} epochs" if budget["epochs"] else f"{budget['image_passes']:,} image passes"
    return f"**{record.data}, {record.model}, {size}**"


def by_method(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The rows of a table: the records of each method (with its variant), in the order they come."""
    rows: dict[str, list[Record]] = {}
    for record in records:
        rows.setdefault(record.variant, []).append(record)
    return rows


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half of the 95% interval of Student's t distribution; None for a single value.

    >>> middle, half = interval([1.0, 2.0, 3.0])
    >>> middle, round(half, 3)
    (2.0, 2.484)
    """
    if len(values) < 2:
        return mean(values), None
    from scipy.stats import t

    return mean(values), float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def differences(rows: dict[str, list[Record]], method: str, other: str = BASELINE) -> list[float]:
    """Top-1 of a method minus that of another, for each seed that both have run."""
    top1 = {record.seed: record.final["top1"] for record in rows.get(other, [])}
    return [r.final["top1"] - top1[r.seed] for r in rows[method] if r.seed in top1]


def fill(text: str, folder: Path) -> str:
    """`text` with every table between two comments made anew from the records that the first one names:

        <!-- psd report results/cifar100-small -->
        <!-- end of psd report -->

    Paths are relative to `folder`. ValueError where a comment has no end, or no table is found.
    """
    begins, blocks = text.count("<!-- psd report "), list(BLOCK.finditer(text))
    if begins != len(blocks) or not blocks:
        raise Refused(f"{begins} comments '<!-- psd report PATH -->', {len(blocks)} of them with their end below")

    def table(block: re.Match[str]) -> str:
        paths = [folder / path for path in block["paths"].split()]
        return f"{block[1]}\n{report(paths)}\n{block[4]}"

    return BLOCK.sub(table, text)


def _files(paths: Iterable[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise Refused(f"{path}: no such record or folder")
        inside = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        if not inside:
            raise Refused(f"{path} holds no records (*.json)")
        files += inside
    return files


def _check_rows(records: list[Record]) -> None:
    for name, row in by_method(records).items():
        for record in row[1:]:
            unlike = config.differences(_without_seed(row[0]), _without_seed(record))
            if unlike:
                raise Refused(
                    f"{name}: seeds {row[0].seed} and {record.seed} ran with different settings, "
                    f"{'; '.join(unlike)}; give one of them a run.variant"
                )


def _without_seed(record: Record) -> dict[str, Any]:
    """A record's settings without its seed, which stands in the name of a teacher of the same seed, too, and which is
    that of a replicate's images."""

    def masked(value: Any) -> Any:
        return value.replace(f"-s{record.seed}", "-s*") if isinstance(value, str) else value

    method = {key: masked(value) for key, value in record.config["method"].items()}
    data = dict(record.config["data"])
    if data.get("replicate"):
        del data["seed"]
    return {**record.config, "data": data, "method": method, "run": {**record.config["run"], "seed": None}}


def _check_protocol(records: list[Record]) -> None:
    """What is compared must differ in the method alone."""
    first = records[0]
    for record in records[1:]:
        unlike = config.differences(_protocol(first), _protocol(record))
        if unlike:
            raise Refused(
                f"{first.name} and {record.name} cannot stand in one table, as their protocols differ: "
                f"{'; '.join(unlike)}"
            )


def _protocol(record: Record) -> dict[str, Any]:
    same = {key: record.config["run"].get(key) for key in PROTOCOL if key in record.config["run"]}
    sections = {
        section: {key: value for key, value in record.config[section].items() if (section, key) not in TUNED}
        for section in ("data", "model", "optimizer")
    }
    if record.config["data"].get("replicate"):
        del sections["data"]["seed"]
    return {**sections, "run": same, "test": {"images": record.final["n_test"]}}


def _forwards(record: Record) -> int:
    """Images that a step forwards for one anchor, from the record itself: a method may be another by now, or gone."""
    anchors: int = _steps(record) * record.config["data"]["batch_size"]
    return round(record.image_passes / anchors)


def _steps(record: Record) -> int:
    return sum(entry["steps"] for entry in record.epochs)


def _images_a_step(record: Record) -> int:
    return round(record.image_passes / _steps(record))


def _differ(records: list[Record], section: str, key: str) -> bool:
    return len({record.config[section][key] for record in records}) > 1


def _numbers(records: list[Record]) -> Iterator[dict[str, Any]]:
    rows = by_method(records)
    for name, row in rows.items():
        line: dict[str, Any] = {"data": row[0].data, "model": row[0].model, "budget": row[0].budget, "method": name}
        line["seeds"] = " ".join(str(record.seed) for record in row)
        columns = {key: [record.final[key] for record in row] for key in ("top1", "top5", "nll", "ece")}
        for other in (BASELINE, CONTROL):
            columns[f"top1_minus_{other}"] = [] if name == other else list(differences(rows, name, other))
        for key, values in columns.items():
            middle, half = interval(values) if values and None not in values else (None, None)
            line |= {key: middle, f"{key}_half_interval": half}
        line |= {"n_test": row[0].final["n_test"], "epochs": _epochs(row[0])}
        line |= {"image_passes": row[0].image_passes, "forwards": _forwards(row[0])}
        peaks = [record.peak_memory for record in row]
        line |= {"seconds": mean(r.seconds for r in row), "peak_memory": None if None in peaks else max(peaks)}  # type: ignore[type-var]
        yield line


def _memory(row: list[Record]) -> str:
    peaks = [record.peak_memory for record in row if record.peak_memory is not None]
    return f"{max(peaks) / 1e6:,.0f} MB" if peaks else "–"


def _table(records: list[Record], costs: bool) -> str:
    rows = by_method(records)
    columns: dict[str, Callable[[str, list[Record]], str]] = {
        "method": lambda name, row: name,
        "top-1 %": lambda name, row: _spread([r.final["top1"] for r in row], 2),
        f"Δ {BASELINE}": lambda name, row: _difference(rows, name, BASELINE),
        f"Δ {CONTROL}": lambda name, row: _difference(rows, name, CONTROL),
        "top-5 %": lambda name, row: _spread([r.final["top5"] for r in row], 2),
        "NLL": lambda name, row: _spread([r.final["nll"] for r in row], 3),
        "ECE": lambda name, row: _spread([r.final["ece"] for r in row], 3),
        "overconfidence": lambda name, row: _spread([r.final.get("overconfidence") for r in row], 3, signed=True),
        "NLL, T fitted": lambda name, row: _spread([r.final.get("nll_scaled") for r in row], 3),
        "ECE, T fitted": lambda name, row: _spread([r.final.get("ece_scaled") for r in row], 3),
        "images a step": lambda name, row: str(_images_a_step(row[0])),
        "steps": lambda name, row: f"{_steps(row[0]):,}",
        "lr": lambda name, row: f"{row[0].config['optimizer']['lr']:g}",
        "seeds": lambda name, row: str(len(row)),
        "epochs": lambda name, row: f"{_epochs(row[0]):g}",
        "seconds": lambda name, row: f"{mean(r.seconds for r in row):.0f}",
    }
    if costs:
        columns |= {
            "passes": lambda name, row: f"{row[0].image_passes:,}",
            "forwards": lambda name, row: str(_forwards(row[0])),
            "memory": lambda name, row: _memory(row),
        }
    for other in (BASELINE, CONTROL):
        if other not in _compared_with(rows):
            del columns[f"Δ {other}"]
    if all(r.final["top5"] is None for r in records):
        del columns["top-5 %"]
    for title, key in (
        ("overconfidence", "overconfidence"),
        *((f"{k.upper()}, T fitted", f"{k}_scaled") for k in ("nll", "ece")),
    ):
        if all(key not in r.final for r in records):
            del columns[title]
    if not _differ(records, "data", "batch_size"):
        del columns["images a step"], columns["steps"]
    if not _differ(records, "optimizer", "lr"):
        del columns["lr"]
    if _same_seeds(rows):
        del columns["seeds"]
    lines = [list(columns), *([cell(name, row) for cell in columns.values()] for name, row in rows.items())]
    widths = [max(len(line[k]) for line in lines) for k in range(len(columns))]
    lines.insert(1, ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def _compared_with(rows: dict[str, list[Record]]) -> list[str]:
    return [other for other in (BASELINE, CONTROL) if other in rows and len(rows) > 1]


def _same_seeds(rows: dict[str, list[Record]]) -> bool:
    return len({tuple(record.seed for record in row) for row in rows.values()}) == 1


def _difference(rows: dict[str, list[Record]], name: str, other: str) -> str:
    return "" if name == other else _spread(differences(rows, name, other), 2, signed=True)


def _epochs(record: Record) -> float:
    """Passes over the training images as anchors; the last one may be cut short."""
    steps: list[int] = [entry["steps"] for entry in record.epochs]
    return round(sum(steps) / max(steps), 1)


def _caption(records: list[Record]) -> str:
    seeds = sorted({record.seed for record in records})
    some = "" if _same_seeds(by_method(records)) else ", as many of them as the column says"
    tested = " / ".join(f"{n:,}" for n in sorted({record.final["n_test"] for record in records}))
    devices = ", ".join(sorted({record.device for record in records}))
    several = len(seeds) > 1
    delta = ""
    if _compared_with(by_method(records)):
        delta = " Δ: difference in top-1, in points" + (", paired by seed." if several else ".")
    return (
        f"{'Mean ± half of the 95% t-interval over seeds' if several else 'Seed'} {', '.join(map(str, seeds))}{some}; "
        f"{tested} test images, after the last epoch.{delta} Seconds a run on {devices}."
    )


def _spread(values: Sequence[float | None], digits: int, signed: bool = False) -> str:
    """Mean ± half interval; a single value alone; a dash for none."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "–"
    middle, half = interval(numbers)
    text = f"{middle:{'+' if signed else ''}.{digits}f}"
    return text if half is None else f"{text} ± {half:.{digits}f}"
