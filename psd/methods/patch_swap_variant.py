"""Ideas of our own on patch swap, to be kept only if they win."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from psd.checks import check_settings
from psd.data.batches import Batch
from psd.losses import LossTerms, softened_kl
from psd.methods import Progress, Step, part_mask
from psd.methods.patch_swap import PatchSwap
from psd.swap import patch_swap


@dataclass
class PatchSwapVariant(PatchSwap):
    """end: share of the training after which pairs are shown whole. ramp: share of the training over which the weight
    grows from 0. mix_sizes: every step draws its patch size from patch_size and its halves down to mix_sizes pixels; 0
    takes patch_size alone. mean: both predictions are taught by their mean, without gradient into it. layer: module
    whose output is swapped in the place of the images, with patch_size in pixels of its map. The rest as in patch_swap.

    Loss: that of patch_swap, changed as said.
    Cost: 1 forward and 1 backward of 2N images. Memory: none. Needs: partners. Source: our ideas.
    """

    end: float = 1.0
    ramp: float = 0.0
    mix_sizes: int = 0
    mean: bool = False
    layer: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.before:
            raise ValueError("method.before does not apply to patch_swap_variant; leave it false")
        share = ">= 0 and <= 1"
        check_settings("method", _Options(self.end, self.ramp, self.mix_sizes), end=share, ramp=share, mix_sizes=">= 0")

    def images(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor]:
        assert batch.partner is not None
        x_a, x_b = batch.x, batch.partner
        if self.layer or progress.step >= self.end * progress.steps:
            return x_a, x_b
        size = self._size()
        return patch_swap(x_a, x_b, size, mask=part_mask(x_a, size, self.p, self.ratio, progress))

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        if self.layer and progress.step < self.end * progress.steps:
            handle = model.get_submodule(self.layer).register_forward_hook(
                lambda module, args, output: self._swap_maps(output, progress)
            )
            try:
                made = super().step(model, batch, progress)
            finally:
                handle.remove()
        else:
            made = super().step(model, batch, progress)
        terms = made.terms
        if self.mean:
            z_a, z_b = made.logits.float().chunk(2)
            t = self.temperature
            middle = ((z_a / t).softmax(1) + (z_b / t).softmax(1)).div(2).log().mul(t).detach()  # as logits
            distillation = (softened_kl(middle, z_a, t) + softened_kl(middle, z_b, t)) / 2
            total = terms.total + self.weight * (distillation - terms.distillation)
            terms = LossTerms(total, terms.cross_entropy, distillation, terms.feature)
        if self.ramp > 0:
            missing = 1 - min(1.0, progress.step / (self.ramp * progress.steps))
            terms = terms._replace(total=terms.total - missing * self.weight * terms.distillation)
        return Step(terms, made.logits, made.target)

    def _swap_maps(self, maps: Tensor, progress: Progress) -> Tensor:
        a, b = maps.chunk(2)
        return torch.cat(
            patch_swap(a, b, self.patch_size, mask=part_mask(a, self.patch_size, self.p, self.ratio, progress))
        )

    def _size(self) -> int | tuple[int, int]:
        if not self.mix_sizes or isinstance(self.patch_size, tuple):
            return self.patch_size
        sizes = [self.patch_size]
        while sizes[-1] // 2 >= self.mix_sizes:
            sizes.append(sizes[-1] // 2)
        return sizes[int(torch.randint(len(sizes), ()))]


@dataclass
class _Options:
    """The settings that `PatchSwap` does not check."""

    end: float
    ramp: float
    mix_sizes: int
