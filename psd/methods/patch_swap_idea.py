"""Ideas of our own on patch swap, and a second augmentation on top of it, to be kept only if they win."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psd.checks import Refused, check_settings
from psd.losses import softened_kl
from psd.methods import Batch, Progress, Setup, Step, part_mask
from psd.methods.cutmix import CutMix
from psd.methods.mixup import Mixup
from psd.methods.patch_swap import PatchSwap
from psd.methods.random_erasing import RandomErasing
from psd.swap import patch_swap

TOPS = ("", "mixup", "cutmix", "random_erasing", "label_smoothing")


@dataclass(kw_only=True)
class PatchSwapIdea(PatchSwap):
    """top: what happens to a swapped pair before the network sees it, with the defaults of the method of that name;
    mixup and cutmix take another pair of the batch, with one weight or box for both images. end: share of the training
    after which pairs are shown whole. ring: three images of a class exchange patches in a circle, each gives its patches
    to the one before it, and the three pairs of neighbours distil. gap: of so many partners drawn, the one is taken whose
    p(y), when it was last an anchor, is furthest from the anchor's. ramp: share of the training over which the weight grows from 0. mean: both
    predictions are taught by their mean, without gradient into it. The rest as in patch_swap.

    Loss: that of patch_swap, changed as said. Cost: 1 forward and 1 backward of 2N images. Memory: none.
    Needs: partners. Source: our ideas.
    """

    top: str = ""
    end: float = 1.0
    ramp: float = 0.0
    mean: bool = False
    ring: bool = False
    gap: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ring:
            self.needs, self.passes_per_anchor = self.needs | {"third"}, 3  # type: ignore[misc]  # of this instance
        if self.gap:
            self.needs = self.needs | {f"gap {self.gap}"}  # type: ignore[misc]
        share = ">= 0 and <= 1"
        for option in ("end", "ramp"):
            check_settings("method", self, option, **{option: share})
        if self.top not in TOPS:
            raise Refused(f"method.top must be one of {', '.join(TOPS[1:])}, got {self.top!r}")
        self._mixing = {"mixup": Mixup, "cutmix": CutMix}.get(self.top, CutMix)()
        self._erasing = RandomErasing()

    def setup(self, setup: Setup) -> None:
        self._classes = setup.classes
        self._mixing.setup(setup)
        self._erasing.setup(setup)

    def images(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor]:
        if progress.step >= self.end * progress.steps:
            assert batch.partner is not None
            return batch.x, batch.partner
        return super().images(batch, progress)

    def pair(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor, Tensor]:
        x_a, x_b, target = super().pair(batch, progress)
        if self.top in ("mixup", "cutmix"):
            both, target = self._mixing.mix(torch.cat([x_a, x_b], dim=1), target)  # (N, 2C, H, W)
            x_a, x_b = both.chunk(2, dim=1)
        if self.top == "random_erasing":
            x_a, x_b = (torch.stack([self._erasing._erase(image) for image in x]) for x in (x_a, x_b))
        if self.top == "label_smoothing":
            target = 0.9 * F.one_hot(target, self._classes) + 0.1 / self._classes
        x_a, x_b = (x.contiguous(memory_format=torch.channels_last) for x in (x_a, x_b))
        return x_a, x_b, target

    def _ring(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        assert batch.partner is not None and batch.third is not None
        images = (batch.x, batch.partner, batch.third)
        mask = part_mask(batch.x, self.patch_size, self.p, self.ratio, progress)
        neighbours = zip(images, (*images[1:], images[0]), strict=True)
        x = torch.cat([patch_swap(one, other, self.patch_size, mask=mask)[0] for one, other in neighbours])
        logits = model(x.contiguous(memory_format=torch.channels_last))
        z = logits.chunk(3)
        found = [self.loss()(z[k], z[(k + 1) % 3], batch.y) for k in range(3)]
        total, cross_entropy, distillation = (
            sum(getattr(one, name) for one in found) / 3 for name in ("total", "cross_entropy", "distillation")
        )
        terms = found[0]._replace(total=total, cross_entropy=cross_entropy, distillation=distillation)
        return Step(terms, logits, torch.cat([batch.y] * 3))

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        if self.ring:
            return self._ring(model, batch, progress)
        made = super().step(model, batch, progress)
        terms = made.terms
        if self.gap:
            assert batch.known is not None and made.logits is not None
            z_a = made.logits.detach().float()[: len(batch.y)]
            batch.known[batch.index] = z_a.softmax(1).gather(1, batch.y[:, None])[:, 0]
        if self.mean:
            z_a, z_b = made.logits.float().chunk(2)  # type: ignore[union-attr]
            t = self.temperature
            middle = ((z_a / t).softmax(1) + (z_b / t).softmax(1)).div(2).log().mul(t).detach()  # as logits
            distillation = (softened_kl(middle, z_a, t) + softened_kl(middle, z_b, t)) / 2
            total = terms.total + self.weight * (distillation - terms.distillation)
            terms = terms._replace(total=total, distillation=distillation)
        if self.ramp > 0:
            missing = 1 - min(1.0, progress.step / (self.ramp * progress.steps))
            terms = terms._replace(total=terms.total - missing * self.weight * terms.distillation)
        return Step(terms, made.logits, made.target)
