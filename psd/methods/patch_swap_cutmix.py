"""Patch swap, then CutMix: both images of a swapped pair get one box of another swapped pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from psd.methods import Batch, Progress, Setup
from psd.methods.cutmix import CutMix
from psd.methods.patch_swap import PatchSwap


@dataclass(kw_only=True)
class PatchSwapCutMix(PatchSwap):
    """alpha, cutmix_p: as alpha and p in cutmix; the rest as in patch_swap.

    Loss: that of patch_swap, with labels mixed by the box's area as the target of both images of a pair, whose two
    predictions still teach each other. Cost: 1 forward and 1 backward of 2N images. Memory: none. Needs: partners.
    Source: our combination.
    """

    alpha: float = 1.0
    cutmix_p: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._cutmix = CutMix(alpha=self.alpha, p=self.cutmix_p)

    def setup(self, setup: Setup) -> None:
        self._cutmix.setup(setup)

    def pair(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor, Tensor]:
        x_a, x_b, y = super().pair(batch, progress)
        both, target = self._cutmix.mix(torch.cat([x_a, x_b], dim=1), y)  # (N, 2C, H, W): one box for both
        x_a, x_b = (x.contiguous(memory_format=torch.channels_last) for x in both.chunk(2, dim=1))
        return x_a, x_b, target
