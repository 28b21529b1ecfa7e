"""DDGSD: the predictions for two augmentations of one image teach each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from psd.checks import check_settings
from psd.features import features_and_logits
from psd.losses import LossTerms, softened_kl
from psd.methods import Batch, Method, Progress, Step


@dataclass(kw_only=True)
class Ddgsd(Method):
    """Data-distortion guided self-distillation. temperature T > 0, weight w >= 0, feature_weight v >= 0.

    Loss: 1/2 [CE(z_1, y) + CE(z_2, y)] + w T^2 [KL(q_2 || q_1) + KL(q_1 || q_2)] + v ||mean h_1 - mean h_2||^2 for two
    augmentations of one image, without gradient into the first argument of KL; h are penultimate features, their mean
    is over the batch.
    Cost: 1 forward and 1 backward of 2N images. Memory: none. Needs: a second view of each image.
    Source: Xu & Liu, AAAI 2019, in the form of Self-KD-Lib (github.com/winycg/Self-KD-Lib): T 4, w 1, v 5e-4.
    """

    temperature: float = 4.0
    weight: float = 1.0
    feature_weight: float = 5e-4

    needs: ClassVar[frozenset[str]] = frozenset({"view"})
    passes_per_anchor: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_settings("method", self, temperature="> 0", weight=">= 0", feature_weight=">= 0")

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        assert batch.view is not None
        features, logits = features_and_logits(model, torch.cat([batch.x, batch.view]))
        z_1, z_2 = logits.float().chunk(2)
        h_1, h_2 = features.float().chunk(2)
        target = batch.y.repeat(2)
        cross_entropy = F.cross_entropy(logits.float(), target)
        t = self.temperature
        distillation = softened_kl(z_2.detach(), z_1, t) + softened_kl(z_1.detach(), z_2, t)
        feature = (h_1.mean(0) - h_2.mean(0)).square().sum()
        total = cross_entropy + self.weight * distillation + self.feature_weight * feature
        return Step(LossTerms(total, cross_entropy, distillation, feature), logits, target)
