"""The losses of an epoch, summed on the device: they are read at a look, and no other step waits for them."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from psd.methods import Step
from psd.training.place import Place

LOOK_EVERY = 50  # steps between two looks at the loss; each look waits for the device
LOOK_SECONDS = 5  # between two looks of several processes, where 50 steps would take longer
REMEDY = "Lower optimizer.lr, add optimizer.warmup, or set optimizer.clip_norm"  # of a run that diverged


class Diverged(RuntimeError):
    """The loss of a training step or of the test became NaN or infinite."""


class Watch:
    """Sums of the loss terms and of right predictions since an epoch began, and the first loss that was not finite.

    sums: total, cross-entropy, distillation, feature, right predictions, predictions.
    """

    def __init__(self, place: Place, steps: int) -> None:
        self.place, self.steps = place, steps
        self.sums = torch.zeros(6, device=place.device)
        self.next_look = 0
        self._first_bad = torch.full((), steps, device=place.device)
        self._last_finite = torch.full((), math.nan, device=place.device)
        self._since, self._from = time.perf_counter(), 0

    def begin(self, step: int, first: bool) -> None:
        """At the beginning of an epoch (`first`), or inside one, after a resume, where the sums go on."""
        if first:
            self.sums.zero_()
        self._since, self._from = time.perf_counter(), step
        self.next_look = step + self._steps_to_next_look(0.0)

    def add(self, step: int, parts: list[Tensor]) -> None:
        """The numbers of a step, one row for each part of its batch: see `numbers_of`."""
        sums = torch.stack(parts).sum(0)
        self.sums += sums
        loss = sums[0]
        good = loss.isfinite() & (self._first_bad == self.steps)
        here = torch.full_like(self._first_bad, step)
        self._first_bad = torch.where(good, self._first_bad, torch.minimum(self._first_bad, here))
        self._last_finite = torch.where(good, loss, self._last_finite)

    def steps_since(self, step: int) -> int:
        """Steps that were trained in the time of `seconds`."""
        return step - self._from

    @property
    def seconds(self) -> float:
        """Of training since the epoch began or the run went on."""
        return time.perf_counter() - self._since

    def look(self, step: int, first: int, epoch: int, stop: bool) -> tuple[dict[str, Any], bool]:
        """Read what the devices have summed up: means over the epoch so far, and whether any process was asked to stop.

        The only place in an epoch where the host waits for the device, and processes for each other's host.

        Raises:
            Diverged: a loss since the beginning of the run was not finite.
        """
        seconds = self.seconds / (step - self._from)
        mine = [self._first_bad, self._last_finite, torch.tensor(float(stop)), torch.tensor(seconds)]
        state = torch.cat([self.sums, torch.stack([value.to(self.place.device).float() for value in mine])])
        rows = self.place.processes.every(state).double().cpu()
        sums, bad, stops, slowest = rows[:, :6], rows[:, 6], bool(rows[:, 8].any()), float(rows[:, 9].max())
        if int(bad.min()) < self.steps:
            at, last = int(bad.min()), float(rows[bad.argmin(), 7])
            known = f"; the last finite loss was {last:.4g}, at step {at - 1}" if math.isfinite(last) else ""
            raise Diverged(f"the loss is NaN or infinite at step {at} (epoch {epoch + 1}){known}. {REMEDY}")
        self.next_look = step + self._steps_to_next_look(slowest)
        predictions = float(sums[:, 5].sum())
        total, cross_entropy, distillation, feature = (sums[:, :4].mean(0) / (step - first)).tolist()
        return {
            "loss": total,
            "cross_entropy": cross_entropy,
            "distillation": distillation,
            "feature": feature,
            "train_top1": 100 * float(sums[:, 4].sum() / predictions) if predictions else None,
        }, stops

    def _steps_to_next_look(self, seconds: float) -> int:
        """Processes hear of a SIGTERM at a look alone, and its sender does not wait for long."""
        if self.place.processes.world == 1:
            return LOOK_EVERY
        return max(1, min(LOOK_EVERY, int(LOOK_SECONDS / seconds))) if seconds > 0 else 1


def numbers_of(result: Step, parts: int) -> Tensor:
    """(6,) of one of the `parts` of a step's batch: its loss terms, right predictions, predictions in all.

    A soft target's class is its largest; one below 0 does not count.
    """
    terms = torch.stack([term.detach() for term in result.terms]) / parts
    if result.logits is None or result.target is None:
        return torch.cat([terms, terms.new_zeros(2)])
    target = result.target.argmax(1) if result.target.is_floating_point() else result.target
    right = (result.logits.detach().argmax(1) == target).sum()
    counted = (target >= 0).sum() if target.ndim > 1 else torch.full_like(right, target.numel())
    return torch.cat([terms, torch.stack([right, counted]).float()])
