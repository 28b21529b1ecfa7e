"""Mixup: the weighted mean of two images of the batch, with the weighted mean of their labels."""

from __future__ import annotations

from dataclasses import dataclass

from psd.methods import Setup
from psd.methods.cutmix import CutMix


@dataclass(kw_only=True)
class Mixup(CutMix):
    """alpha: both parameters of the Beta distribution of the weight l. p: probability that a batch is mixed.

    Loss: l CE(z, y_a) + (1 - l) CE(z, y_b) for x = l x_a + (1 - l) x_b, one l for a batch (torchvision's MixUp).
    Cost: 1 forward, 1 backward. Memory: none. Needs: nothing; images of any class are mixed.
    Source: Zhang et al. 2018, arXiv 1710.09412; alpha 1 as in its code for CIFAR, which mixes every batch.
    """

    p: float = 1.0

    def setup(self, setup: Setup) -> None:
        from torchvision.transforms import v2

        self._mix = v2.MixUp(alpha=self.alpha, num_classes=setup.classes)
