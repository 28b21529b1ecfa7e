"""What a network that computes its own losses is trained by, as torchvision's detectors are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from psd.methods import Batch, Method, Progress, Step, single_terms


@dataclass(kw_only=True)
class OwnLoss(Method):
    """Loss: the sum of what `model(images, targets)` gives: a dict of scalars, or one scalar.

    Cost: 1 forward, 1 backward. Memory: none. Needs: nothing. Source: the network's; of torchvision's detectors see
    `psd.models.build`.
    """

    learns: ClassVar[frozenset[str]] = frozenset({"boxes"})

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        losses = model(batch.x, batch.y)
        total = torch.stack(list(losses.values())).sum() if isinstance(losses, dict) else losses
        return Step(single_terms(total), None, None)
