"""How many threads PyTorch's OpenMP starts and how they wait, settled in the environment before torch is loaded.

Left alone, PyTorch counts the cores of the machine, not those that a container or a batch system grants; and a thread
that waits for the others spins, on a core that another process could use. OpenMP reads its settings when torch loads
it and never again, so this file needs the standard library alone and comes first (psd/__init__.py).
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Each names what a user may have set in place of ours.
COUNT = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS")
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")

_CGROUP = re.compile(r"\d+:(.*?):(/.*)")  # 0::/user.slice of version 2, 4:cpu,cpuacct:/user.slice of version 1
_MOUNT = re.compile(r"\S+ \S+ \S+ (\S+) (\S+) .* - (cgroup2?) ")  # 30 23 0:26 ROOT MOUNT rw - cgroup2 cgroup rw

_ours: dict[str, str] = {}  # what `prepare` has set in this process


def available(process: Path = Path("/proc/self")) -> int:
    """Cores that this process may use, at least 1: those of its affinity, or of the CPU quota of its cgroups if fewer.

    A quota counts in whole cores, rounded up: one thread could never use the half of 1.5 cores, and two, which are
    stopped together when the quota of a period is used up, can. Quotas that are missing or cannot be read do not limit.

    Args:
        process: the folder that tells of a process's cgroups and of where they are mounted (Linux, versions 1 and 2).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = (_quota(folder) for folder in _cgroups(process))
    return min([cores, *(math.ceil(quota) for quota in quotas if quota is not None)])


def prepare() -> None:
    """Set in this process's environment what the user has not: no more threads than cores, and none that spins.

    Nothing happens once torch is loaded, because it would change nothing. The number of threads is set only where
    fewer cores than the machine's are available: on a whole machine PyTorch's own number is the better one, because
    it leaves out hyperthreads and efficiency cores.
    """
    if "torch" in sys.modules:
        return
    cores = available()
    _ours.update(settings(cores if cores < (os.cpu_count() or 1) else None))
    os.environ.update(_ours)


def settings(threads: int | None) -> dict[str, str]:
    """Environment variables for so many threads (None: as many as PyTorch likes) that sleep while they wait.

    What the user has set is left out, whichever of the variables for it they chose.
    """
    users = {name for name, value in os.environ.items() if _ours.get(name) != value}
    chosen = {}
    if threads is not None and users.isdisjoint(COUNT):
        chosen["OMP_NUM_THREADS"] = str(threads)
    if users.isdisjoint(WAITING):
        # OpenMP's own word, which GNU's runtime (torch's wheels on Linux) takes as GOMP_SPINCOUNT=0, LLVM's and
        # Intel's (macOS, Windows, conda-forge) as KMP_BLOCKTIME=0.
        chosen["OMP_WAIT_POLICY"] = "PASSIVE"
    return chosen


def asked() -> bool:
    """Whether this process is psd's command, as `psd` or `python -m psd`, or has PSD_THREADS=auto in its environment.

    Raises:
        ValueError: PSD_THREADS is set to anything else.
    """
    wish = os.environ.get("PSD_THREADS")
    if wish is not None:
        if wish != "auto":
            raise ValueError(f"PSD_THREADS must be auto or not set, got {wish!r}; a number is for OMP_NUM_THREADS")
        return True
    return is_command()


def is_command() -> bool:
    """Whether this process is psd's command."""
    name = sys.argv[0] if sys.argv else ""
    if name == "-m":  # so Python calls it until it has found the module, whose name stands before the arguments
        return sys.orig_argv[-len(sys.argv)] in ("psd", "-mpsd")
    return Path(name).stem == "psd"


def _cgroups(process: Path) -> Iterator[Path]:
    """Folders of the cgroups that the process is in and that can have a CPU quota, from the mount downwards."""
    paths = {}
    for controllers, path in _found(_CGROUP, process / "cgroup"):
        if controllers == "" or "cpu" in controllers.split(","):
            paths["cgroup" if controllers else "cgroup2"] = PurePosixPath(path)
    for root, mount, kind in _found(_MOUNT, process / "mountinfo"):
        if kind not in paths:
            continue
        folder, inside = Path(mount), paths[kind]  # version 1 has mounts of other controllers too: no quota is there
        yield folder
        # A container may see its own cgroup alone, mounted in place of the root, and yet be told the path outside.
        if inside.is_relative_to(root) and ".." not in inside.parts:
            for part in inside.relative_to(root).parts:
                folder /= part
                yield folder


def _quota(folder: Path) -> float | None:
    """Cores that a cgroup grants: CPU time in a period over the period, both in microseconds."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = map(int, " ".join((folder / file).read_text() for file in files).split())
        except (OSError, ValueError):  # not there, or "max": no limit
            continue
        if quota > 0 and period > 0:  # version 1 has -1 for no limit
            return quota / period
    return None


def _found(line: re.Pattern[str], file: Path) -> list[tuple[str, ...]]:
    try:
        return [match.groups() for text in file.read_text(errors="replace").splitlines() if (match := line.match(text))]
    except OSError:  # this is not Linux, or it has no /proc
        return []
