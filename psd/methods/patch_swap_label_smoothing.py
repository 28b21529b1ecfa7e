"""Patch swap whose cross-entropy has the target (1 - e) y + e / C."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from psd.checks import check_settings
from psd.methods import Batch, Progress, Setup
from psd.methods.patch_swap import PatchSwap


@dataclass(kw_only=True)
class PatchSwapLabelSmoothing(PatchSwap):
    """smoothing: e in [0, 1]; the rest as in patch_swap.

    Loss: that of patch_swap with the target (1 - e) y + e / C in its cross-entropy.
    Cost: 1 forward and 1 backward of 2N images. Memory: none. Needs: partners.
    Source: our combination; e as in label_smoothing.
    """

    smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings("method", self, "smoothing", smoothing=">= 0 and <= 1")

    def setup(self, setup: Setup) -> None:
        self._classes = setup.classes

    def pair(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor, Tensor]:
        x_a, x_b, y = super().pair(batch, progress)
        target = (1 - self.smoothing) * F.one_hot(y, self._classes) + self.smoothing / self._classes
        return x_a, x_b, target
