"""What `psd env` prints, for people to paste into an issue: versions, machine, threads, data. No paths, no names."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from psd import threads
from psd.data import download
from psd.training.records import revision, versions

OTHERS = ("accelerate", "torchmetrics", "jsonargparse", "numpy", "matplotlib", "timm", "lightning", "transformers")


def describe() -> str:
    """A line for each fact, ready to be pasted."""
    found = {**versions(), **{name: _version(name) for name in OTHERS}}
    lines = [f"{name}: {number}" for name, number in found.items()]
    lines.append(f"revision: {revision() or 'not a checkout'}")
    lines.append(f"system: {platform.system()} {platform.release()}, {platform.machine()}")
    lines.append(f"cores: {threads.available()} of {os.cpu_count()}; torch uses {torch.get_num_threads()} threads")
    set_by_user = [f"{name}={os.environ[name]}" for name in (*threads.COUNT, *threads.WAITING) if name in os.environ]
    lines.append(f"thread settings: {', '.join(set_by_user) or 'none'}")
    lines.append(f"devices: {', '.join(_devices())}")
    lines += [f"data {row[0]}: {row.state.partition(':')[0]}" for row in download.check()]
    return "\n".join(lines)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    found = [f"cuda {torch.cuda.get_device_name(k)}" for k in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]
