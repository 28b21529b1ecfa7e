"""Tf-KD, regularisation form: a teacher that is written down by hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from psd.checks import check_settings
from psd.losses import LossTerms
from psd.methods import Batch, Method, Progress, Step


@dataclass(kw_only=True)
class TfKd(Method):
    """Teacher-free knowledge distillation. share: a in [0, 1]; temperature T > 0; multiplier >= 0; correct: u's
    probability of the label, in (0, 1).

    Loss: (1 - a) CE(z, y) + a multiplier / C KL(softmax(u / T) || softmax(z)), where u holds `correct` at the label and
    shares the rest among the other classes. T divides probabilities, so that the target is nearly uniform.
    Cost: 1 forward, 1 backward. Memory: none. Needs: nothing.
    Source: Yuan et al. 2020, arXiv 1909.11723, in the form of its code for CIFAR-100
    (github.com/yuanli2333/Teacher-free-Knowledge-Distillation): a 0.1, T 20, multiplier 100, correct 0.99; the code
    takes the mean over N and C, which for its 100 classes makes 0.9 CE + 0.1 KL.
    """

    share: float = 0.1
    temperature: float = 20.0
    multiplier: float = 100.0
    correct: float = 0.99

    def __post_init__(self) -> None:
        check_settings(
            "method", self, share=">= 0 and <= 1", temperature="> 0", multiplier=">= 0", correct="> 0 and < 1"
        )

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        logits = model(batch.x)
        z = logits.float()
        classes = z.shape[1]
        u = torch.full_like(z, (1 - self.correct) / (classes - 1)).scatter_(1, batch.y[:, None], self.correct)
        log_teacher = (u / self.temperature).log_softmax(1)
        cross_entropy = F.cross_entropy(z, batch.y)
        kl = F.kl_div(z.log_softmax(1), log_teacher, reduction="batchmean", log_target=True)
        total = (1 - self.share) * cross_entropy + self.share * self.multiplier / classes * kl
        return Step(LossTerms(total, cross_entropy, kl, torch.zeros_like(total)), logits, batch.y)
