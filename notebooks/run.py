"""Run notebooks from top to bottom, save their outputs, and note how long each took and how much memory.

    python notebooks/run.py                                    # all, solutions too (make notebooks-full)
    python notebooks/run.py notebooks/02_losses.ipynb ...      # some

Seconds (the start of the kernel included) and the highest memory of the kernel and its workers go to timings.json, and
from there into README's table.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
TIMINGS = Path(__file__).parent / "timings.json"
EXECUTE = ("-m", "jupyter", "nbconvert", "--to", "notebook", "--execute", "--inplace", "--log-level=WARN")
OPTIONS = ("--ExecutePreprocessor.record_timing=False", "--ExecutePreprocessor.timeout=1800")


def run(path: Path) -> dict[str, float]:
    """Execute one notebook and save it; a failing cell ends everything, and that notebook stays as it was."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen([sys.executable, *EXECUTE, *OPTIONS, str(path)]) as process:
        while process.poll() is None:
            peak = max(peak, memory(psutil.Process(process.pid)))
            time.sleep(1)  # looking costs the processor a few hundredths of a second
    if process.returncode:
        raise SystemExit(process.returncode)
    return {"seconds": round(time.perf_counter() - start), "megabytes": round(peak / 1e6)}


def memory(process: psutil.Process) -> int:
    """Bytes held by the processes that this one has started, pages that they share counted once."""
    total = 0
    try:
        for child in process.children(recursive=True):
            total += child.memory_full_info().pss
    except psutil.Error:  # it ended while we looked
        pass
    return total


def cost(stem: str, timings: dict[str, dict[str, float]]) -> str:
    """README's cell for a notebook: minutes and gigabytes on the CPU."""
    timing = timings[f"{stem}.ipynb"]
    return f"{max(1, round(timing['seconds'] / 60))} min, {timing['megabytes'] / 1000:.1f} GB"


def fill(readme: str, timings: dict[str, dict[str, float]]) -> str:
    """README with the fourth column of the table of notebooks, `<minutes>, <GB> / <GPU minutes>`, written anew."""
    row = re.compile(r"^(\| \[[^]]*\]\(notebooks/(\w+)\.ipynb\) \|[^|]*\|[^|]*\| )[^|/]*( / [^|]*\|)", re.MULTILINE)
    timed = {Path(name).stem for name in timings if "/" not in name}
    return row.sub(lambda m: f"{m[1]}{cost(m[2], timings)}{m[3]}" if m[2] in timed else m[0], readme)


def main(paths: list[Path]) -> None:
    for path in paths or sorted(TIMINGS.parent.glob("*.ipynb")) + sorted(TIMINGS.parent.glob("solutions/*.ipynb")):
        name = path.resolve().relative_to(TIMINGS.parent).as_posix()
        timing = run(path)
        print(f"{name}: {timing['seconds']} s, {timing['megabytes']} MB", flush=True)
        timings = json.loads(TIMINGS.read_text()) if TIMINGS.exists() else {}
        TIMINGS.write_text(json.dumps({**timings, name: timing}, indent=1, sort_keys=True) + "\n")
    readme = ROOT / "README.md"
    readme.write_text(fill(readme.read_text(encoding="utf-8"), json.loads(TIMINGS.read_text())), encoding="utf-8")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
