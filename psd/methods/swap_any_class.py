"""Patches exchanged between images of any class, with labels mixed by area: the control for "intra-class"."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from psd.methods import Batch, Progress, Step, part_mask, single_terms
from psd.methods.swap_cross_entropy import SwapCrossEntropy
from psd.swap import patch_swap


@dataclass
class SwapAnyClass(SwapCrossEntropy):
    """patch_size (pixels), p, ratio: as in `psd.patch_swap`.

    Loss: CE of both images of a pair, with labels mixed by the area that was exchanged. Each anchor exchanges patches
    with the partner of the batch's next anchor: the same 2N images as in the pair methods, but for other classes.
    Cost: 1 forward and 1 backward of 2N images. Memory: none. Needs: partners.
    Source: our control; CutMix (Yun et al. 2019) with patches in the place of a box.
    """

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        assert batch.partner is not None
        y_a, y_b = batch.y, batch.y.roll(-1)
        x_a, x_b = batch.x, batch.partner.roll(-1, 0)
        mask = part_mask(x_a, self.patch_size, self.p, self.ratio, progress)
        logits = model(torch.cat(patch_swap(x_a, x_b, self.patch_size, mask=mask)))
        moved = mask.float().mean((1, 2))[:, None]  # (N, 1): the share of each image that comes from the other
        hot_a, hot_b = (F.one_hot(y, logits.shape[1]) for y in (y_a, y_b))
        target = torch.cat([(1 - moved) * hot_a + moved * hot_b, (1 - moved) * hot_b + moved * hot_a])
        return Step(single_terms(F.cross_entropy(logits.float(), target)), logits, target)
