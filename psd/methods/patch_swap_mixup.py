"""Patch swap, then Mixup: both images of a swapped pair are blended with those of another swapped pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from psd.data.batches import Batch
from psd.methods import Progress
from psd.methods.mixup import Mixup
from psd.methods.patch_swap import PatchSwap


@dataclass
class PatchSwapMixup(PatchSwap):
    """alpha, mixup_p: as alpha and p in mixup; the rest as in patch_swap.

    Loss: that of patch_swap, with labels mixed by the weight of the blend as the target of both images of a pair, whose
    two predictions still teach each other.
    Cost: 1 forward and 1 backward of 2N images. Memory: none. Needs: partners.
    Source: our combination.
    """

    alpha: float = 1.0
    mixup_p: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._mixup = Mixup(self.alpha, self.mixup_p)

    def setup(self, classes: int, samples: int) -> None:
        self._mixup.setup(classes, samples)

    def pair(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor, Tensor]:
        x_a, x_b, y = super().pair(batch, progress)
        both, target = self._mixup.mix(torch.cat([x_a, x_b], dim=1), y)  # (N, 2C, H, W): one weight for both
        x_a, x_b = (x.contiguous(memory_format=torch.channels_last) for x in both.chunk(2, dim=1))
        return x_a, x_b, target
