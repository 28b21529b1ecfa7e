"""Patch swap, then random erasing: a rectangle of each swapped image is blanked, each image its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from psd.data.batches import Batch
from psd.methods import Progress
from psd.methods.patch_swap import PatchSwap
from psd.methods.random_erasing import RandomErasing


@dataclass
class PatchSwapRandomErasing(PatchSwap):
    """erase_p: as p in random_erasing, with its other settings; the rest as in patch_swap.

    Loss: that of patch_swap, on what is left of the two images.
    Cost: 1 forward and 1 backward of 2N images. Memory: none. Needs: partners.
    Source: our combination.
    """

    erase_p: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._erasing = RandomErasing(self.erase_p)

    def setup(self, classes: int, samples: int) -> None:
        self._erasing.setup(classes, samples)

    def images(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor]:
        x_a, x_b = super().images(batch, progress)
        return self._erasing.erase(x_a), self._erasing.erase(x_b)
