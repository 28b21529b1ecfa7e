"""Patch swap of pictures together with their masks: an augmentation of segmentation, without distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psd.methods import Batch, Method, Progress, Step, part_mask, single_terms
from psd.swap import PatchSwap as Swap
from psd.swap import Ratio, patch_swap


@dataclass(kw_only=True)
class SwapMasks(Method):
    """patch_size (pixels), p, ratio: as in `psd.patch_swap`; p 0 is cross-entropy on the same pairs.

    Loss: 1/2 [CE(z_a, y_a) + CE(z_b, y_b)] a pixel, of two pictures that share a class and have exchanged patches with
    the masks below them.
    Cost: 1 forward and 1 backward of 2N images. Memory: none. Needs: partners.
    Source: our experiment.
    """

    patch_size: int | tuple[int, int] = 16
    p: float = 0.5
    ratio: Ratio = 0.5

    needs: ClassVar[frozenset[str]] = frozenset({"partner"})
    passes_per_anchor: ClassVar[int] = 2
    learns: ClassVar[frozenset[str]] = frozenset({"mask"})

    def __post_init__(self) -> None:
        Swap(self.patch_size, self.p, self.ratio)  # refuses what is out of range

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        assert batch.partner is not None
        swapped = part_mask(batch.x, self.patch_size, self.p, self.ratio, progress)
        x = torch.cat(patch_swap(batch.x, batch.partner, self.patch_size, mask=swapped))
        y = torch.cat(exchanged(batch.y, batch.partner_y, swapped))
        logits = model(x)
        return Step(single_terms(F.cross_entropy(logits.float(), y)), logits, y)


def exchanged(a: Tensor, b: Tensor, swapped: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (N, [C,] H, W), with the places exchanged where the positions `swapped` (N, rows, columns) are."""
    height, width = a.shape[-2] // swapped.shape[1], a.shape[-1] // swapped.shape[2]
    there = swapped.repeat_interleave(height, 1).repeat_interleave(width, 2)  # (N, H, W)
    there = there if a.ndim == 3 else there[:, None]
    return torch.where(there, b, a), torch.where(there, a, b)
