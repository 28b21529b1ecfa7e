"""A run's record: one JSON file that holds what was run, on what, and what came out."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from psd.checks import Refused

SCHEMA = 1


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
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Refused(f"{path}: not readable as a record: {error}") from None
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise Refused(f"{path}: not a record of schema {SCHEMA}")
        values = {"peak_memory": None, "task": "classification", "metrics": [], **values}
        run = values.get("config", {}).get("run", {})
        if str(values.get("device", "")).startswith("cpu"):  # older records say what was asked for, not what was found
            run |= {"device": run.get("device") or "cpu"}
            run |= {"precision": "fp32"} if run.get("precision") == "auto" else {}
        missing = {f.name for f in dataclasses.fields(cls)} - set(values)
        if missing:
            raise Refused(f"{path}: the record lacks {', '.join(sorted(missing))}")
        return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls)})


def write_atomically(path: Path, text: str) -> None:
    """The file either keeps what it held or holds all of `text`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write: it takes the place of `path` once written, or goes where the writing failed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
