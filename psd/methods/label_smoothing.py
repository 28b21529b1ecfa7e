"""Cross-entropy with the target (1 - e) y + e / C."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from torch.nn import functional as F

from psd.checks import check_settings
from psd.methods import Batch, Method, Progress, Step, single_terms


@dataclass(kw_only=True)
class LabelSmoothing(Method):
    """smoothing: e in [0, 1], the share of the target spread over all classes.

    Loss: CE(z, (1 - e) y + e / C). Cost: 1 forward, 1 backward. Memory: none. Needs: nothing.
    Source: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7; e = 0.1 as there.
    """

    smoothing: float = 0.1

    learns: ClassVar[frozenset[str]] = frozenset({"label", "mask"})

    def __post_init__(self) -> None:
        check_settings("method", self, smoothing=">= 0 and <= 1")

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        logits = model(batch.x)
        loss = F.cross_entropy(logits.float(), batch.y, label_smoothing=self.smoothing)
        return Step(single_terms(loss), logits, batch.y)
