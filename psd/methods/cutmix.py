"""CutMix: a box of another image of the batch is pasted in, and the labels are mixed by area."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psd.checks import Refused, check_settings
from psd.methods import Batch, Method, Progress, Setup, Step, single_terms


@dataclass(kw_only=True)
class CutMix(Method):
    """alpha: both parameters of the Beta distribution of the area that is kept. p: probability that a batch is mixed.

    Loss: l CE(z, y_a) + (1 - l) CE(z, y_b), l = share of the area that is kept; one box for the whole batch
    (torchvision's CutMix).
    Cost: 1 forward, 1 backward. Memory: none. Needs: nothing; images of any class are mixed.
    Source: Yun et al. 2019, arXiv 1905.04899; alpha 1 and p 0.5 are the settings of its CIFAR-100 experiments.
    """

    alpha: float = 1.0
    p: float = 0.5

    def __post_init__(self) -> None:
        check_settings("method", self, alpha="> 0", p=">= 0 and <= 1")

    def setup(self, setup: Setup) -> None:
        from torchvision.transforms import v2

        self._mix = v2.CutMix(alpha=self.alpha, num_classes=setup.classes)

    def mix(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Images and targets (N, C), or, with probability 1 - p, the images and labels (N,) as they are."""
        if len(x) < 2:
            raise Refused(f"{self.name} mixes images of one batch, so data.batch_size must be at least 2, got {len(x)}")
        return self._mix(x, y) if torch.rand(()) < self.p else (x, y)

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        x, target = self.mix(batch.x, batch.y)
        logits = model(x)
        return Step(single_terms(F.cross_entropy(logits.float(), target)), logits, target)
