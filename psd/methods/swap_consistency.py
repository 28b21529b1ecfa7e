"""One content in two contexts: predictions of swapped pictures, swapped back, and those of the whole pictures teach
each other, pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from psd.losses import SelfDistillationLoss
from psd.methods import Batch, Method, Progress, Step, part_mask
from psd.methods.swap_masks import exchanged
from psd.swap import PatchSwap as Swap
from psd.swap import Ratio, patch_swap


@dataclass(kw_only=True)
class SwapConsistency(Method):
    """patch_size (pixels), p, ratio: as in `psd.patch_swap`; temperature, weight, detach: as in
    `psd.SelfDistillationLoss`.

    After the swap the two pictures of a pair differ at every place, so that their predictions are not comparable place
    by place. The predictions are swapped back by the same positions: then each tells of the content that the whole
    picture has there, seen in another context.
    Loss: that of `psd.SelfDistillationLoss` a pixel, of the whole pictures' logits and those that were swapped back;
    both learn the masks.
    Cost: 1 forward and 1 backward of 4N images: N anchors, their partners, and both swapped. Memory: none.
    Needs: partners. Source: our experiment.
    """

    patch_size: int | tuple[int, int] = 16
    p: float = 1.0
    ratio: Ratio = 0.5
    temperature: float = 1.0
    weight: float = 1.0
    detach: bool = False

    needs: ClassVar[frozenset[str]] = frozenset({"partner"})
    passes_per_anchor: ClassVar[int] = 4
    learns: ClassVar[frozenset[str]] = frozenset({"mask"})

    def __post_init__(self) -> None:
        Swap(self.patch_size, self.p, self.ratio)  # both refuse what is out of range
        self.loss()

    def loss(self) -> SelfDistillationLoss:
        """Of the settings as they are now."""
        return SelfDistillationLoss(self.temperature, self.weight, self.detach)

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        assert batch.partner is not None
        pair = batch.x, batch.partner
        swapped = part_mask(batch.x, self.patch_size, self.p, self.ratio, progress)
        logits = model(torch.cat([*pair, *patch_swap(*pair, self.patch_size, mask=swapped)]))
        whole, mixed = logits.chunk(2)
        mixed_a, mixed_b = mixed.chunk(2)
        back = torch.cat(exchanged(mixed_a, mixed_b, swapped))
        y = torch.cat([batch.y, batch.partner_y])
        return Step(self.loss()(whole, back, y), torch.cat([whole, back]), torch.cat([y, y]))
