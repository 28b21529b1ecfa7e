"""Which records stand together: those of a table, of its rows, and what they measure and come from."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from psd import tasks
from psd.checks import Refused, naming
from psd.tasks import Metric
from psd.training import config
from psd.training.records import Record, check_whole

BASELINE = "cross_entropy"
OWN = "own_loss"  # the baseline where networks compute their losses themselves
PROTOCOL = ("precision", "accumulate", "sync_batchnorm")  # of the settings in `run`, those that shape a result
NEAR = 0.05  # the share by which lengths of runs that are compared may differ: batches cut an epoch's end unequally
TUNED = (  # may differ in a table, whose columns then tell
    ("data", "batch_size"),
    ("optimizer", "lr"),
    ("model", "weights"),
    ("model", "freeze_backbone"),
)


def groups(paths: Iterable[str | os.PathLike[str]]) -> list[list[Record]]:
    """The records under `paths`, a list for each table, cross-entropy first in each, small budgets before large ones.

    Errors as in `psd.report`.
    """
    found: dict[str, tuple[Path, Record]] = {}
    for file in _files([Path(path) for path in paths]):
        record = Record.read(file)
        with naming(file):
            check_whole(record)
        if record.name in found and file.resolve() != found[record.name][0].resolve():
            raise Refused(f"{file} and {found[record.name][0]} are records of one run, {record.name}; name one")
        found[record.name] = (file, record)
    tables: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for _, record in found.values():
        tables[record.data, record.model, budget_size(record), record.budget].append(record)
    for records in tables.values():
        records.sort(key=lambda r: (r.variant not in (BASELINE, OWN), r.variant, r.seed))
        _check_rows(records)
        _check_protocol(records)
    return [tables[key] for key in sorted(tables)]


def by_method(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The rows of a table: the records of each method (with its variant), in the order they come."""
    rows: dict[str, list[Record]] = {}
    for record in records:
        rows.setdefault(record.variant, []).append(record)
    return rows


def heading(record: Record) -> str:
    """The title of the table that a record stands in."""
    return f"**{record.data}, {record.model}, {budget_name(record)}**"


def budget_name(record: Record) -> str:
    budget = record.config["budget"]
    return f"{budget['epochs']} epochs" if budget.get("epochs") else f"{budget['image_passes']:,} image passes"


def budget_size(record: Record) -> tuple[bool, int]:
    """What budgets are sorted by: those in epochs first."""
    budget = record.config["budget"]
    return not budget.get("epochs"), budget.get("epochs") or budget["image_passes"]


def steps(record: Record) -> int:
    return sum(entry["steps"] for entry in record.epochs)


def epochs(record: Record) -> float:
    """Passes over the training images as anchors; the last one may be cut short."""
    taken: list[int] = [entry["steps"] for entry in record.epochs]
    return round(sum(taken) / max(taken), 1)


def metrics(records: Iterable[Record]) -> dict[str, Metric]:
    """What the records measure, by name, in the order in which they list it; without what none of them has.

    Records that are older than their list have that of their task. ValueError where nothing was measured.
    """
    records = list(records)
    listed: dict[str, Metric] = {}
    for record in records:
        for metric in [Metric(**entry) for entry in record.metrics] or tasks.find(record.task).metrics:
            listed.setdefault(metric.name, metric)
    found = {name: metric for name, metric in listed.items() if any(r.final.get(name) is not None for r in records)}
    if not found:
        raise Refused(
            f"{', '.join(r.name for r in records) or 'no records'}: there is no figure that the task measures"
        )
    return found


def primary(rows: dict[str, list[Record]]) -> Metric:
    """The metric that methods are compared by: the first one."""
    return next(iter(metrics(record for row in rows.values() for record in row).values()))


def values(row: Iterable[Record], metric: Metric) -> list[float]:
    """A figure of the runs that have it."""
    return [record.final[metric.name] for record in row if record.final.get(metric.name) is not None]


def differences(
    rows: dict[str, list[Record]], method: str, other: str = BASELINE, metric: Metric | None = None
) -> list[float]:
    """A method's figure minus that of another, for each seed that both have run; of the first metric if not named."""
    metric = metric or primary(rows)
    theirs = {record.seed: record for record in rows.get(other, [])}
    pairs = [(record, theirs[record.seed]) for record in rows[method] if record.seed in theirs]
    return paired(pairs, metric)


def paired(pairs: Iterable[tuple[Record, Record]], metric: Metric) -> list[float]:
    """Differences, first minus second, of the pairs that both have the figure."""
    both = [(a.final.get(metric.name), b.final.get(metric.name)) for a, b in pairs]
    return [a - b for a, b in both if a is not None and b is not None]


def curves(records: Iterable[Record], by_epochs: bool = False) -> dict[str, dict[float, list[Record]]]:
    """Each method's records by the length of their runs, from short to long: image passes, or epochs.

    ValueError where records are of several data sets or networks, where protocols or a method's settings differ, and
    where a method has run twice with one seed at one length.
    """
    records = sorted(records, key=lambda r: (r.variant != BASELINE, r.variant, length(r, by_epochs), r.seed))
    if len({(r.data, r.model) for r in records}) != 1:
        names = sorted({f"{r.data}/{r.model}" for r in records})
        raise Refused(f"records of one data set and model are needed, got {', '.join(names) or 'none'}")
    _check_protocol(records)
    found: dict[str, dict[float, list[Record]]] = {}
    for name, row in by_method(records).items():
        _check_rows(row, at_any_budget=True)
        points = found[name] = {}
        for record in row:
            x = length(record, by_epochs)
            known = near(points, x)
            same = points.setdefault(x if known is None else known, [])
            if record.seed in {other.seed for other in same}:
                raise Refused(f"{same[0].name} and {record.name} are of one length; give the records of one of them")
            same.append(record)
    return found


def length(record: Record, by_epochs: bool) -> float:
    """Of a run: its budget in image passes, or the passes that a budget in epochs took; or its epochs."""
    return epochs(record) if by_epochs else record.config["budget"].get("image_passes") or record.image_passes


def near(points: Iterable[float], x: float) -> float | None:
    """The one of `points` that counts as `x`."""
    return min((p for p in points if abs(p / x - 1) <= NEAR), key=lambda p: abs(p - x), default=None)


def unit(metric: Metric, difference: bool = False) -> str:
    """In words: "points" for a difference of percentages, "" for a fraction."""
    return "points" if difference and metric.unit == "%" else metric.unit


def provenance(records: Iterable[Record]) -> str:
    """A sentence for records that mix devices or revisions of the code; "" for others."""
    records = list(records)
    # Threads of a CPU change how long a run takes, and not what is drawn.
    devices = sorted({"cpu" if r.device.startswith("cpu") else r.device for r in records})
    revisions = sorted({_short(r.revision) for r in records})
    said = [f"runs on {_and(devices)}"] if len(devices) > 1 else []
    said += [f"code of revisions {_and(revisions)}"] if len(revisions) > 1 else []
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def protocols(records: Sequence[Record]) -> list[str]:
    """How the protocols of records differ from that of the first: data, augmentation, optimiser, precision, images."""
    return sorted({text for r in records[1:] for text in config.differences(_protocol(records[0]), _protocol(r))})


def _short(revision: str | None) -> str:
    """ "+" stands for changes that were not committed, as in `psd.training.records.revision`."""
    return "unknown" if revision is None else revision[:7] + "+" * revision.endswith("+")


def _and(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


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


def _check_rows(records: list[Record], at_any_budget: bool = False) -> None:
    for name, row in by_method(records).items():
        for record in row[1:]:
            rest: dict[str, Any] = {"budget": {}} if at_any_budget else {}
            # One teacher, or one network's weights, for all seeds, or one of each seed's own.
            unlike, of_each = (
                config.differences(*(_without_seed(r, each) | rest for r in (row[0], record))) for each in (False, True)
            )
            if unlike and of_each:
                where = f" at {row[0].budget} and {record.budget}" if row[0].budget != record.budget else ""
                raise Refused(
                    f"{name}: seeds {row[0].seed} and {record.seed}{where} ran with different settings, "
                    f"{'; '.join(unlike)}; give one of them a run.variant"
                )


def repeats(records: Iterable[Record]) -> str:
    """What intervals over these records cover: "replicates", each with images of its own, or "seeds"."""
    return "replicates" if all(record.config["data"].get("replicate") for record in records) else "seeds"


def _without_seed(record: Record, in_names: bool) -> dict[str, Any]:
    """A record's settings without its seed, which is that of a replicate's images and may stand `in_names` of a teacher
    and of weights; and without its device, which `provenance` tells of."""

    def masked(value: Any) -> Any:
        return value.replace(f"-s{record.seed}", "-s*") if in_names and isinstance(value, str) else value

    run = {**record.config["run"], "seed": None, "device": None}
    method, model = (
        {key: masked(value) for key, value in record.config.get(part, {}).items()} for part in ("method", "model")
    )
    data = dict(record.config["data"])
    if data.get("replicate"):
        del data["seed"]
    return {**record.config, "data": data, "method": method, "model": model, "run": run}


def _check_protocol(records: list[Record]) -> None:
    """What is compared must differ in the method alone."""
    first = records[0]
    for record in records[1:]:
        unlike = protocols([first, record])
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
    return {**sections, "run": same, "task": {"name": record.task}, "test": {"images": record.final.get("n_test")}}
