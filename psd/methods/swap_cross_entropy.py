"""Patch swap as a mere augmentation: cross-entropy on both swapped images, without distillation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from psd.methods import Batch, Progress, part_mask
from psd.methods.pair_cross_entropy import PairCrossEntropy
from psd.swap import PatchSwap as Swap
from psd.swap import Ratio, patch_swap


@dataclass(kw_only=True)
class SwapCrossEntropy(PairCrossEntropy):
    """patch_size (pixels), p, ratio: as in `psd.patch_swap`.

    Loss: 1/2 [CE(z_a, y) + CE(z_b, y)] of the swapped pair.
    Cost: 1 forward and 1 backward of 2N images. Memory: none. Needs: partners.
    Source: our control, patch swap without distillation.
    """

    patch_size: int | tuple[int, int] = 4
    p: float = 0.5
    ratio: Ratio = 0.5

    def __post_init__(self) -> None:
        Swap(self.patch_size, self.p, self.ratio)  # refuses what is out of range

    def images(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor]:
        x_a, x_b = super().images(batch, progress)
        mask = part_mask(x_a, self.patch_size, self.p, self.ratio, progress)
        return patch_swap(x_a, x_b, self.patch_size, mask=mask)
