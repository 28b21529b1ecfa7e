"""CS-KD: the prediction for another image of the class teaches that for the anchor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from psd.checks import check_settings
from psd.losses import LossTerms, softened_kl
from psd.methods import Batch, Method, Progress, Step


@dataclass(kw_only=True)
class CsKd(Method):
    """Class-wise self-knowledge distillation. temperature T > 0, weight w >= 0.

    Loss: CE(z, y) + w T^2 KL(q(x') || q(x)) with x' of x's class, q = softmax(z / T), no gradient into q(x').
    Cost: 2 forwards of N images, 1 backward; the partners are forwarded in training mode, so that BatchNorm's
    statistics move twice a step. Memory: none. Needs: partners.
    Source: Yun et al. 2020, arXiv 2003.13964, and its code (github.com/alinlab/cs-kd); T 4 and w 1 as there.
    """

    temperature: float = 4.0
    weight: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset({"partner"})
    passes_per_anchor: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_settings("method", self, temperature="> 0", weight=">= 0")

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        assert batch.partner is not None
        with torch.no_grad():
            teacher = model(batch.partner).float().clone()  # what a CUDA graph gives is overwritten by its next replay
        logits = model(batch.x)
        z = logits.float()
        cross_entropy = F.cross_entropy(z, batch.y)
        distillation = softened_kl(teacher, z, self.temperature)
        total = cross_entropy + self.weight * distillation
        return Step(LossTerms(total, cross_entropy, distillation, torch.zeros_like(total)), logits, batch.y)
