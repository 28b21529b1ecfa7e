"""Tables of records: what `psd report` prints and README shows."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from csv import DictWriter
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

from psd.checks import Refused, markdown
from psd.reporting.selection import (
    BASELINE,
    OWN,
    budget_name,
    by_method,
    differences,
    epochs,
    groups,
    heading,
    metrics,
    primary,
    protocols,
    provenance,
    repeats,
    steps,
    unit,
    values,
)
from psd.reporting.statistics import apart, how_tested, interval
from psd.tasks import Metric
from psd.training.records import Record

# What else a reader of records needs stands here, too: `tables.groups`, `tables.interval`.
__all__ = ["BASELINE", "BLOCK", "by_method", "csv", "differences", "fill", "groups", "heading", "interval", "report"]

CONTROL = "pair_cross_entropy"  # the same images, steps and batches as the pair methods have
BLOCK = re.compile(r"(<!-- psd report (?P<paths>[^>]*?) -->\n)(?P<table>.*?)(<!-- end of psd report -->)", re.DOTALL)


def report(paths: Iterable[str | os.PathLike[str]], costs: bool = False) -> str:
    """Markdown tables of records, one for each data set, model and budget, one row for each method.

    The columns are the metrics that the records list. Mean over seeds ± half of the 95% t-interval. Differences in the
    first metric to cross-entropy, that on single images and that on the same pairs, are paired by seed. Everything is
    measured after the last epoch. A column counts the seeds where rows have different ones. Where methods have run at
    several budgets on one data set and network, one more table has a column for each budget.

    Args:
        paths: record files, or folders that are searched for them.
        costs: with columns for the image passes of a run, the forwards of a step's images, and peak memory.

    Raises:
        ValueError: no record there, a file that is none, one run twice, runs of one row with different settings, runs
            of one table with different protocols: data, augmentation, optimiser, precision, test images.
    """
    sections = []
    for _, found in groupby(groups(paths), key=lambda records: (records[0].data, records[0].model)):
        budgets = list(found)
        sections += [_section(heading(r[0]), _table(r, costs), _caption(r), provenance(r)) for r in budgets]
        sections += _by_budget(budgets)
    return "\n".join(sections)


def csv(paths: Iterable[str | os.PathLike[str]]) -> str:
    """The same as comma-separated values: one line for each row of each table, means and half intervals apart.

    Errors as in `report`.
    """
    out = io.StringIO()
    lines = [line for records in groups(paths) for line in _numbers(records)]
    columns = dict.fromkeys(key for line in lines for key in line)  # tasks have columns of their own
    writer = DictWriter(out, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


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


def _section(title: str, table: str, *below: str) -> str:
    return "\n\n".join(part for part in (markdown(title), table, *map(markdown, below)) if part) + "\n"


def _table(records: list[Record], costs: bool) -> str:
    rows = by_method(records)
    first, *others = metrics(records).values()

    def measured(metric: Metric) -> Callable[[str, list[Record]], str]:
        return lambda name, row: _spread(values(row, metric), metric.digits, signed=metric.better == "zero")

    columns: dict[str, Callable[[str, list[Record]], str]] = {
        "method": lambda name, row: name,
        _column(first): measured(first),
        f"Δ {BASELINE}": lambda name, row: _difference(rows, name, BASELINE, first),
        f"Δ {OWN}": lambda name, row: _difference(rows, name, OWN, first),
        f"Δ {CONTROL}": lambda name, row: _difference(rows, name, CONTROL, first),
        **{_column(metric): measured(metric) for metric in others},
        "images a step": lambda name, row: str(round(row[0].image_passes / steps(row[0]))),
        "steps": lambda name, row: f"{steps(row[0]):,}",
        "lr": lambda name, row: _rate(row[0]),
        "begins with": lambda name, row: _begins_with(row[0]),
        "seeds": lambda name, row: str(len(row)),
        "epochs": lambda name, row: f"{epochs(row[0]):g}",
        "seconds": lambda name, row: f"{mean(r.seconds for r in row):.0f}",
    }
    if costs:
        columns |= {
            "passes": lambda name, row: f"{row[0].image_passes:,}",
            "forwards": lambda name, row: str(_forwards(row[0])),
            "memory": lambda name, row: _memory(row),
        }
    for other in (BASELINE, OWN, CONTROL):
        if other not in _compared_with(rows):
            del columns[f"Δ {other}"]
    if not _differ(records, "data", "batch_size"):
        del columns["images a step"], columns["steps"]
    if not _differ(records, "optimizer", "lr"):
        del columns["lr"]
    if len({_begins_with(record) for record in records}) == 1:
        del columns["begins with"]
    if _same_seeds(rows):
        del columns["seeds"]
    return _markdown([list(columns), *([cell(name, row) for cell in columns.values()] for name, row in rows.items())])


def _by_budget(budgets: list[list[Record]]) -> list[str]:
    """The section of one data set and network over its budgets; none where no method has run at two of them."""
    everything = [record for records in budgets for record in records]
    metric = next(iter(metrics(everything).values()))
    columns = {budget_name(records[0]): by_method(records) for records in budgets}
    names = sorted({record.variant for record in everything}, key=lambda name: (name != BASELINE, name))
    names = [name for name in names if sum(name in rows for rows in columns.values()) > 1]
    if not names:
        return []
    lines = [["method", *columns]]
    for name in names:
        cells = (values(rows.get(name, []), metric) for rows in columns.values())
        lines.append([name, *(_spread(cell, metric.digits, signed=metric.better == "zero") for cell in cells)])
    shown = [record for record in everything if record.variant in names]
    complete = len({tuple(r.seed for r in rows.get(name, [])) for name in names for rows in columns.values()}) == 1
    some = "" if complete else ", not all of them in every cell"
    unlike = "; ".join(protocols(shown))
    return [
        _section(
            f"**{shown[0].data}, {shown[0].model}: {_column(metric)} by budget**",
            _markdown(lines),
            f"{_seeds(shown)}{some}; methods that have run at two budgets or more.",
            f"The protocols of these budgets differ: {unlike}." if unlike else "",
            provenance(shown),
        )
    ]


def _markdown(lines: list[list[str]]) -> str:
    """A table with its first line as head; readable as plain text, too."""
    lines = [list(map(markdown, line)) for line in lines]
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in (lines[0], rule, *lines[1:]))


def _numbers(records: list[Record]) -> Iterator[dict[str, Any]]:
    rows = by_method(records)
    found = metrics(records)
    for name, row in rows.items():
        line: dict[str, Any] = {"data": row[0].data, "model": row[0].model, "budget": row[0].budget, "method": name}
        line["seeds"] = " ".join(str(record.seed) for record in row)
        columns = {metric.name: values(row, metric) for metric in found.values()}
        for other in (BASELINE, OWN, CONTROL):
            columns[f"{primary(rows).name}_minus_{other}"] = [] if name == other else differences(rows, name, other)
        for key, numbers in columns.items():
            middle, half = interval(numbers) if numbers else (None, None)
            line |= {key: middle, f"{key}_half_interval": half}
        line |= {"n_test": row[0].final.get("n_test"), "epochs": epochs(row[0])}
        line |= {"image_passes": row[0].image_passes, "forwards": _forwards(row[0])}
        peaks = [record.peak_memory for record in row]
        line |= {"seconds": mean(r.seconds for r in row), "peak_memory": None if None in peaks else max(peaks)}  # type: ignore[type-var]
        yield line


def _caption(records: list[Record]) -> str:
    rows = by_method(records)
    some = "" if _same_seeds(rows) else ", as many of them as the column says"
    tested = " / ".join(f"{n:,}" for n in sorted({record.final.get("n_test", 0) for record in records}))
    kind = "tune" if all(record.config["data"].get("split") == "fit" for record in records) else "test"
    devices = ", ".join(sorted({record.device for record in records}))
    return (
        f"{_seeds(records)}{some}; {tested} {kind} images, after the last epoch. {_better(metrics(records).values())}."
        f"{_deltas(rows)} Seconds a run on {devices}."
    )


def _seeds(records: Sequence[Record]) -> str:
    seeds = sorted({record.seed for record in records})
    over = repeats(records)
    what = f"Mean ± half of the 95% t-interval over {over}" if len(seeds) > 1 else over.capitalize().removesuffix("s")
    return f"{what} {', '.join(map(str, seeds))}"


def _better(found: Iterable[Metric]) -> str:
    """Which way each metric is better, with the units that its column does not say."""
    words: dict[str, list[str]] = {"higher": [], "lower": [], "zero": []}
    for metric in found:
        words[metric.better].append(metric.title + (f" ({metric.unit})" if metric.unit not in ("", "%") else ""))
    said = [f"{way} {', '.join(words[way])}" for way in ("higher", "lower") if words[way]]
    return "Better: " + "; ".join(said + [f"{', '.join(words['zero'])} near zero"] * bool(words["zero"]))


def _deltas(rows: dict[str, list[Record]]) -> str:
    """What the differences of a table are, and which of them are apart from zero."""
    if not _compared_with(rows):
        return ""
    metric = primary(rows)
    unit_ = unit(metric, difference=True)
    text = f" Δ: difference in {metric.title}" + (f", in {unit_}" if unit_ else "")
    text += ", paired by seed." if len({record.seed for row in rows.values() for record in row}) > 1 else "."
    for other in _compared_with(rows):
        tested = apart({name: differences(rows, name, other) for name in rows if name != other})
        if tested:
            names = ", ".join(name for name, is_apart in tested.items() if is_apart) or "none"
            text += f" Δ {other} apart from zero: {names} ({how_tested(len(tested))})."
    return text


def _column(metric: Metric) -> str:
    return f"{metric.title} %" if metric.unit == "%" else metric.title


def _difference(rows: dict[str, list[Record]], name: str, other: str, metric: Metric) -> str:
    return "" if name == other else _spread(differences(rows, name, other), metric.digits, signed=True)


def _compared_with(rows: dict[str, list[Record]]) -> list[str]:
    return [other for other in (BASELINE, CONTROL) if other in rows and len(rows) > 1]


def _same_seeds(rows: dict[str, list[Record]]) -> bool:
    return len({tuple(record.seed for record in row) for row in rows.values()}) == 1


def _differ(records: list[Record], section: str, key: str) -> bool:
    return len({str(record.config[section].get(key)) for record in records}) > 1


def _rate(record: Record) -> str:
    lr = record.config["optimizer"].get("lr")  # of an optimiser of one's own it is not known
    return f"{lr:g}" if isinstance(lr, (int, float)) else "–"


def _begins_with(record: Record) -> str:
    """The weights that a run began with, without the seed in their name; whether the backbone was frozen."""
    model = record.config["model"]
    weights = str(model.get("weights") or "fresh weights").removesuffix(f"-s{record.seed}")
    return f"{weights}, frozen" if model.get("freeze_backbone") else weights


def _forwards(record: Record) -> int:
    """Images that a step forwards for one anchor, from the record itself: a method may be another by now, or gone."""
    anchors: int = steps(record) * record.config["data"]["batch_size"]
    return round(record.image_passes / anchors)


def _memory(row: list[Record]) -> str:
    peaks = [record.peak_memory for record in row if record.peak_memory is not None]
    return f"{max(peaks) / 1e6:,.0f} MB" if peaks else "–"


def _spread(numbers: Sequence[float], digits: int, signed: bool = False) -> str:
    """Mean ± half interval; a single value alone; a dash for none."""
    if not numbers:
        return "–"
    middle, half = interval(numbers)
    text = f"{middle:{'+' if signed else ''}.{digits}f}"
    return text if half is None else f"{text} ± {half:.{digits}f}"
