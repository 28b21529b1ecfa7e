"""The baseline: cross-entropy with the label, one image, or one pixel, at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from torch.nn import functional as F

from psd.methods import Batch, Method, Progress, Step, single_terms


@dataclass(kw_only=True)
class CrossEntropy(Method):
    """Loss: CE(z, y). Cost: 1 forward, 1 backward. Memory: none. Needs: nothing. Source: the usual one."""

    learns: ClassVar[frozenset[str]] = frozenset({"label", "mask"})

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        logits = model(batch.x)
        return Step(single_terms(F.cross_entropy(logits.float(), batch.y)), logits, batch.y)
