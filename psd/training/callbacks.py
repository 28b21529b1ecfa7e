"""What may happen around a step, and may as well not: a progress bar, a log, whatever a user wants to see."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psd.files import blaming, write_atomically

if TYPE_CHECKING:
    from psd.training.loop import Loop
    from psd.training.tracking import Tracking

Entry = dict[str, Any]


class Callback:
    """Derive from it and define what you need; an error in a callback ends the run. Of several processes, the first one
    alone has callbacks.

    An entry is that of `Record.epochs`: epoch (from 1), steps, lr, means of the loss and its terms over the epoch so
    far, train_top1, and at an epoch's end, where it is measured, `test`.
    """

    def begin(self, loop: Loop) -> None:
        """Before the first step, or after a resume: `loop.step` of `loop.steps`."""

    def step(self, loop: Loop) -> None:
        """After every step; nothing may be read from the device here, or every step waits for it."""

    def look(self, loop: Loop, entry: Entry) -> None:
        """Every 50 steps or so, when the losses are read."""

    def epoch(self, loop: Loop, entry: Entry) -> None:
        """After every epoch, of the last one too."""

    def end(self, loop: Loop) -> None:
        """After the last step, or when an error or a stop ends the run."""


class ProgressBar(Callback):
    """tqdm's bar of image passes, in a terminal or a notebook."""

    def begin(self, loop: Loop) -> None:
        from tqdm.auto import tqdm

        self._passes = loop.passes_per_step
        self._bar = tqdm(
            total=loop.steps * self._passes,
            initial=loop.step * self._passes,
            unit=" images",
            unit_scale=True,
            desc=loop.plan.name.rpartition("/")[2],
            delay=1e-3,  # no bar before the first step, so that what that step refuses is one line
        )

    def step(self, loop: Loop) -> None:
        self._bar.update(self._passes)

    def look(self, loop: Loop, entry: Entry) -> None:
        top1 = {} if entry["train_top1"] is None else {"top1": f"{entry['train_top1']:.1f}%"}
        self._bar.set_postfix({"epoch": entry["epoch"], "loss": f"{entry['loss']:.3f}", **top1})

    def end(self, loop: Loop) -> None:
        self._bar.close()


class OnEpoch(Callback):
    """A function of each epoch's entry."""

    def __init__(self, function: Callable[[Entry], None]) -> None:
        self._function = function

    def epoch(self, loop: Loop, entry: Entry) -> None:
        self._function(entry)


class MetricsLog(Callback):
    """Lines of JSON, one for each look at the loss and one for each epoch, in `<folder>/metrics.jsonl`.

    A line holds `step` (optimiser steps so far), `epoch` (from 1), and the means over the epoch so far; that of a whole
    epoch is the record's entry, with `test` where measured. Lines of later steps than those at which a run goes on are
    dropped: they are of a course that was left.

    Args:
        folder: of the run.
        tracking: a tracker, which gets the numbers too, or None.
    """

    def __init__(self, folder: Path, tracking: Tracking | None = None) -> None:
        self.path, self.tracking = folder / "metrics.jsonl", tracking
        self._begin: int | None = None

    def begin(self, loop: Loop) -> None:
        self._begin = loop.step

    def look(self, loop: Loop, entry: Entry) -> None:
        if loop.step % loop.per_epoch and loop.step < loop.steps:  # the epoch's end has a line of its own
            self.add(loop.step, {**entry, "images_per_second": loop.images_per_second})

    def epoch(self, loop: Loop, entry: Entry) -> None:
        self.add(loop.step, entry)

    def add(self, step: int, values: Entry) -> None:
        """Write one line; until the first one, what an earlier run has left stays as it is."""
        if self._begin is not None:
            self._drop_what_follows(self._begin)
            self._begin = None
        with blaming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self.tracking is not None:
            self.tracking.add(step, values)

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
