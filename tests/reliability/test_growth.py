"""Nothing grows with the number of epochs: memory, open files, threads, Python's objects."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import psutil
import pytest

import psd
from psd.training.callbacks import Callback


def megabytes(process: psutil.Process) -> float:
    """What the process has allocated, in memory or swapped; on Linux without the pages of files, which come and go."""
    rollup = Path("/proc/self/smaps_rollup")
    if not rollup.exists():
        return process.memory_info().rss / 2**20
    return sum(map(int, re.findall(r"^(?:Anonymous|Swap): +(\d+) kB$", rollup.read_text(), re.M))) / 2**10


class Watch(Callback):
    """What the process holds after some epochs."""

    def __init__(self, *epochs):
        self.process, self.epochs, self.seen = psutil.Process(), epochs, []

    def epoch(self, loop, entry):
        if entry["epoch"] not in self.epochs:
            return
        gc.collect()
        files = self.process.num_fds() if hasattr(self.process, "num_fds") else self.process.num_handles()
        self.seen.append((megabytes(self.process), files, self.process.num_threads(), len(gc.get_objects())))


@pytest.mark.parametrize("method", ["patch_swap", "dlb"])
def test_nothing_grows_with_the_epochs(method, tmp_path, long, tally, one_thread):
    epochs, settled = (400, 100) if long else (40, 10)
    data = psd.data.load("shapes", classes=2, per_class=8)
    watch = Watch(settled, epochs)
    psd.fit(
        psd.models.build("resnet8", 2),
        data,
        data,
        method=method,
        budget=epochs,
        batch_size=8,
        run={"output": str(tmp_path), "evaluate_every": 1, "checkpoint_every": 1, "progress": False, "device": "cpu"},
        callbacks=[watch],
    )
    first, last = watch.seen
    growth = [after - before for before, after in zip(first, last, strict=True)]
    assert growth[1] <= 0 and growth[2] <= 0, growth  # files, threads
    per_epoch = [value / (epochs - settled) for value in growth]
    assert per_epoch[0] < 0.05 if long else growth[0] < 20, growth  # megabytes
    assert per_epoch[3] < 40, growth  # an epoch's entry in the record, and no more
    held = f"{growth[0]:+.1f} MB, {growth[1]:+d} open files, {growth[2]:+d} threads"
    tally("Memory and time", f"an epoch of {method}, each with evaluation and checkpoint", held, tried=epochs - settled)
