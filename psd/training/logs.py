"""The course of a run while it lasts: `metrics.jsonl`, and TensorBoard where it is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from psd.training.records import write_atomically


class MetricsLog:
    """Lines of JSON, one for each look at the loss and one for each epoch, in `<folder>/metrics.jsonl`.

    A line holds `step` (optimiser steps so far), `epoch` (from 1), and the means over the epoch so far; that of a whole
    epoch is the record's entry, with `test` where measured.

    Args:
        folder: of the run.
        step: where the run goes on. Lines of later steps are dropped: they are of a course that was left.
        tracker: an `accelerate.Accelerator` whose trackers get the numbers too, or None.
    """

    def __init__(self, folder: Path, step: int, tracker: Any = None) -> None:
        self.path, self.tracker = folder / "metrics.jsonl", tracker
        self._begin: int | None = step

    def add(self, step: int, values: dict[str, Any]) -> None:
        """Write one line; until the first one, what an earlier run has left stays as it is."""
        if self._begin is not None:
            self._drop_what_follows(self._begin)
            self._begin = None
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self.tracker is not None:
            test = {f"test/{key}": value for key, value in values.get("test", {}).items()}
            numbers = {key: value for key, value in {**values, **test}.items() if isinstance(value, (int, float))}
            self.tracker.log(numbers, step=step)

    def _drop_what_follows(self, step: int) -> None:
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if step > 0 else []
            write_atomically(self.path, "".join(line for line in lines if _step(line) <= step))


def _step(line: str) -> float:
    """The step of a line; infinite for one that a killed process left unfinished."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
