"""Random erasing: a rectangle of each image is blanked, as Cutout does with a square."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from psd.checks import Refused, check_settings
from psd.methods import Batch, Method, Progress, Setup, Step, single_terms


@dataclass(kw_only=True)
class RandomErasing(Method):
    """p: probability of each image. smallest, largest: share of the image's area. aspect: sides from 1 : aspect to
    aspect : 1. A square of a fixed size (Cutout, but never cut by the border) is smallest = largest and aspect = 1.

    Loss: CE. Cost: 1 forward, 1 backward; torchvision's RandomErasing, image by image, on normalised pixels, whose 0 is
    the data's mean. Memory: none. Needs: nothing.
    Source: Zhong et al. 2020, arXiv 1708.04896, with the settings of its experiments, which are torchvision's too;
    DeVries & Taylor 2017, arXiv 1708.04552, for Cutout.
    """

    p: float = 0.5
    smallest: float = 0.02
    largest: float = 0.33
    aspect: float = 3.3

    def __post_init__(self) -> None:
        share = "> 0 and <= 1"
        check_settings("method", self, p=">= 0 and <= 1", smallest=share, largest=share, aspect=">= 1")
        if self.smallest > self.largest:
            raise Refused(f"method.smallest must be at most method.largest {self.largest}, got {self.smallest}")

    def setup(self, setup: Setup) -> None:
        from torchvision.transforms import v2

        scale, ratio = (self.smallest, self.largest), (1 / self.aspect, self.aspect)
        self._erase = v2.RandomErasing(self.p, scale=scale, ratio=ratio, value=0)

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        x = torch.stack([self._erase(image) for image in batch.x]).contiguous(memory_format=torch.channels_last)
        logits = model(x)
        return Step(single_terms(F.cross_entropy(logits.float(), batch.y)), logits, batch.y)
