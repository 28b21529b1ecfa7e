"""CutMix for segmentation: a box of another picture of the batch is pasted in, with its mask."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from psd.checks import Refused, check_settings
from psd.methods import Batch, Method, Progress, Step, single_terms


@dataclass(kw_only=True)
class CutMixMasks(Method):
    """alpha: both parameters of the Beta distribution of the area that is kept. p: probability that a batch is mixed.

    Loss: CE a pixel, each with its own label. One box for the whole batch; the picture before it in the batch gives.
    Cost: 1 forward, 1 backward. Memory: none. Needs: nothing.
    Source: Yun et al. 2019, arXiv 1905.04899, section 3.1, for the box; French et al. 2020, arXiv 1906.01916, paste
    masks of segmentation in this way.
    """

    alpha: float = 1.0
    p: float = 0.5

    learns: ClassVar[frozenset[str]] = frozenset({"mask"})

    def __post_init__(self) -> None:
        check_settings("method", self, alpha="> 0", p=">= 0 and <= 1")

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        x, y = batch.x, batch.y
        if len(x) < 2:
            raise Refused(f"{self.name} mixes images of one batch, so data.batch_size must be at least 2, got {len(x)}")
        if torch.rand(()) < self.p:
            x, y = x.clone(), y.clone()
            rows, columns = self._box(*x.shape[-2:])
            x[..., rows, columns] = batch.x.roll(1, 0)[..., rows, columns]
            y[..., rows, columns] = batch.y.roll(1, 0)[..., rows, columns]
        logits = model(x)
        return Step(single_terms(F.cross_entropy(logits.float(), y)), logits, y)

    def _box(self, height: int, width: int) -> tuple[slice, slice]:
        """A box of the images' shape around a uniform centre, clipped to the image."""
        kept = float(torch.distributions.Beta(self.alpha, self.alpha).sample())
        share, (v, u) = math.sqrt(1 - kept), torch.rand(2).tolist()

        def edges(side: int, centre: float) -> slice:
            half = round(side * share) // 2
            return slice(max(0, int(centre * side) - half), min(side, int(centre * side) + half))

        return edges(height, v), edges(width, u)
