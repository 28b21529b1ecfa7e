"""Patch swap as a mere augmentation: cross-entropy on both swapped images, without distillation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from psd.data.batches import Batch
from psd.methods import Progress, swap_part
from psd.methods.pair_cross_entropy import PairCrossEntropy
from psd.swap import PatchSwap as Swap
from psd.swap import Ratio


@dataclass
class SwapCrossEntropy(PairCrossEntropy):
    """patch_size (pixels), p, ratio: as in `psd.patch_swap`."""

    patch_size: int | tuple[int, int] = 4
    p: float = 0.5
    ratio: Ratio = 0.5

    def __post_init__(self) -> None:
        Swap(self.patch_size, self.p, self.ratio)  # refuses what is out of range

    def images(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor]:
        return swap_part(*super().images(batch, progress), self.patch_size, self.p, self.ratio, progress)
