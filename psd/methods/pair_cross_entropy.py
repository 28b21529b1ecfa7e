"""Cross-entropy on both images of same-class pairs: the control for batch size and number of steps.

It sees the same 2N images per step as the pair methods, without swap and without distillation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psd.methods import Batch, Method, Progress, Step, single_terms


@dataclass(kw_only=True)
class PairCrossEntropy(Method):
    """Loss: 1/2 [CE(z_a, y) + CE(z_b, y)].

    Cost: 1 forward and 1 backward of 2N images. Memory: none. Needs: partners. Source: our control.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"partner"})
    passes_per_anchor: ClassVar[int] = 2

    def images(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor]:
        """The two images of each pair as the network sees them."""
        assert batch.partner is not None
        return batch.x, batch.partner

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        logits = model(torch.cat(self.images(batch, progress)))
        target = batch.y.repeat(2)
        return Step(single_terms(F.cross_entropy(logits.float(), target)), logits, target)
