"""A run's record: one JSON file that holds what was run, on what, and what came out."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from psd.checks import Refused, brief, check_inside, check_settings, naming
from psd.files import write_atomically
from psd.tasks import Metric

SCHEMA = 1
PARTS = ("data", "model", "method", "budget", "optimizer", "run")  # of a record's config
WRITTEN_BY = "give records that psd train, compare or fit wrote"
LIMIT = 1 << 26  # bytes; a record of thousands of epochs has a few millions


@dataclass
class Record:
    """What `psd.train` returns and writes to `<output>/<name>.json`.

    epochs: a list of dicts: epoch (from 1), steps, lr, loss and its terms, train_top1, and `test` where measured; with
    data.skip_corrupt, `skipped`: files that were left out since the run began or went on, as its processes count them.
    final: the task's figures after the last epoch. metrics: what these are, each a `psd.tasks.Metric` as a dict, the
    first what methods are compared by; empty in records that are older than this field. image_passes: images through
    training forwards.
    peak_memory: bytes at the peak of training and measuring: of the GPU's memory or, on a CPU, of the whole process,
    where the system tells (Linux); None elsewhere, and in records that are older than this field.
    seconds: wall time of the run without loading data; images_per_second: image passes per second of training alone.
    """

    name: str
    data: str
    model: str
    method: str
    seed: int
    budget: str
    config: dict[str, Any]
    epochs: list[dict[str, Any]] = field(default_factory=list)
    final: dict[str, Any] = field(default_factory=dict)
    task: str = "classification"
    metrics: list[dict[str, Any]] = field(default_factory=list)
    image_passes: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    peak_memory: int | None = None
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    revision: str | None = None
    schema: int = SCHEMA

    @property
    def variant(self) -> str:
        """The method's name as tables show it: with its variant, without the seed."""
        return self.name.rpartition("/")[2].removesuffix(f"-s{self.seed}")

    def write(self, path: Path | str) -> None:
        """Write as JSON, a line for each epoch, whole or not at all."""
        values = dataclasses.asdict(self)
        epochs = ",\n".join(f"  {json.dumps(entry)}" for entry in values.pop("epochs"))
        head = json.dumps(values, indent=1).removesuffix("\n}")
        write_atomically(Path(path), f'{head},\n "epochs": [\n{epochs}\n ]\n}}\n')

    @classmethod
    def read(cls, path: Path | str) -> Record:
        """ValueError naming the file where it is no record of this schema."""
        try:
            with Path(path).open("rb") as file:
                content = file.read(LIMIT + 1)
            if len(content) > LIMIT:
                raise Refused(f"it is larger than {LIMIT:,} bytes")
            values = json.loads(content.decode("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise Refused(f"{path}: not readable as a record: {error}") from None
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise Refused(f"{path}: not a record of schema {SCHEMA}")
        values = {"peak_memory": None, "task": "classification", "metrics": [], **values}
        missing = {f.name for f in dataclasses.fields(cls)} - set(values)
        if missing:
            raise Refused(f"{path}: the record lacks {', '.join(sorted(missing))}")
        record = cls(**{f.name: values[f.name] for f in dataclasses.fields(cls)})
        with naming(path):
            check_settings("record", record, seed=">= 0", image_passes=">= 0", peak_memory=">= 0", seconds=">= 0")
            check_inside(record.name, "record.name")
            for part, options in record.config.items():
                if not isinstance(options, dict):
                    raise Refused(f"record.config.{part} must be a mapping of settings, got {brief(options)}")
        run = record.config.get("run", {})
        if record.device.startswith("cpu"):  # older records say what was asked for, not what was found
            run |= {"device": run.get("device") or "cpu"}
            run |= {"precision": "fp32"} if run.get("precision") == "auto" else {}
        return record


def check_whole(record: Record) -> None:
    """ValueError for a record that lacks what a run writes, and what tables and model cards count on."""
    absent = [part for part in PARTS if part not in record.config]
    if absent:
        raise Refused(f"record.config lacks {', '.join(absent)}; {WRITTEN_BY}")
    budget, steps = record.config["budget"], [entry.get("steps") for entry in record.epochs]
    lengths = [budget[key] for key in ("epochs", "image_passes") if budget.get(key) is not None]
    losses = [entry.get(key, 0) for entry in record.epochs for key in ("loss", "cross_entropy")]
    names = [entry.get("name") for entry in record.metrics]
    for what, right in (
        *((name, _is_number(getattr(record, name) or 0)) for name in ("image_passes", "seconds", "peak_memory")),
        ("config.budget", len(lengths) == 1 and _are_counts(lengths)),
        ("config.data.batch_size", _are_counts([record.config["data"].get("batch_size")])),
        ("epochs", steps and _are_counts(steps) and all(map(_is_number, losses))),
        ("metrics", all(map(_is_metric, record.metrics)) and len(set(names)) == len(names)),
        ("final", all(v is None or _is_number(v) for key, v in record.final.items() if not names or key in names)),
        ("final.n_test", _are_counts([record.final.get("n_test", 1)])),
    ):
        if not right:
            raise Refused(f"record.{what} is not what a run writes; {WRITTEN_BY}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e100


def _are_counts(values: Sequence[Any]) -> bool:
    return all(_is_number(value) and isinstance(value, int) and value > 0 for value in values)


def _is_metric(entry: dict[str, Any]) -> bool:
    if entry.keys() != set(Metric._fields) or entry["better"] not in ("higher", "lower", "zero"):
        return False
    texts = all(isinstance(entry[key], str) for key in ("name", "title", "unit"))
    return texts and _is_number(entry["digits"]) and entry["digits"] in range(20)


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "pillow", "simplejpeg", "patch-swap-distillation"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def forget_peak_memory(device: torch.device) -> None:
    """Begin to look for the peak anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Bytes at the peak since `forget_peak_memory`, see `Record`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        found = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    return None


def revision() -> str | None:
    """The commit of the checkout that psd is imported from, with "+" if its code differs; None outside a checkout."""
    package = Path(__file__).parents[1]
    if not (package.parent / ".git").exists():
        return None
    try:
        commit = _git(package, "rev-parse", "HEAD")
        return commit + ("+" if _git(package, "status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
