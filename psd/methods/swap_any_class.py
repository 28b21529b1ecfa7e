"""Patches exchanged with an image of another class, with labels mixed by area: the control for "intra-class"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from psd.methods import Batch, Progress, Step, part_mask, single_terms
from psd.methods.swap_cross_entropy import SwapCrossEntropy
from psd.swap import patch_swap


@dataclass(kw_only=True)
class SwapAnyClass(SwapCrossEntropy):
    """patch_size (pixels), p, ratio: as in `psd.patch_swap`.

    Loss: CE of both images of a pair, with labels mixed by the area that was exchanged. Each anchor exchanges patches
    with an image of another class, uniform over all images of all other classes: 2N images as in the pair methods, but
    no pair is of one class.
    Cost: 1 forward and 1 backward of 2N images. Memory: none. Needs: an image of another class for each anchor.
    Source: our control; CutMix (Yun et al. 2019) with patches in the place of a box.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"other"})

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        assert batch.other is not None and batch.other_y is not None
        mask = part_mask(batch.x, self.patch_size, self.p, self.ratio, progress)
        logits = model(torch.cat(patch_swap(batch.x, batch.other, self.patch_size, mask=mask)))
        moved = mask.float().mean((1, 2))[:, None]  # (N, 1): the share of each image that comes from the other
        hot_a, hot_b = (F.one_hot(y, logits.shape[1]) for y in (batch.y, batch.other_y))
        target = torch.cat([(1 - moved) * hot_a + moved * hot_b, (1 - moved) * hot_b + moved * hot_a])
        return Step(single_terms(F.cross_entropy(logits.float(), target)), logits, target)
