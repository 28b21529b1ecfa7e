"""Zipf label smoothing: the other classes, in the order of their logits, shall follow Zipf's law."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from psd.checks import Refused, check_settings
from psd.losses import LossTerms
from psd.methods import Batch, Method, Progress, Setup, Step


@dataclass(kw_only=True)
class ZipfLabelSmoothing(Method):
    """weight: w >= 0. power: s > 0 of the law, probability of rank r proportional to r^-s.

    Loss: CE(z, y) + w KL(Zipf || p), both over the C - 1 classes that are not the label, ranked by their logits; p is
    their softmax. At least 3 classes.
    Cost: 1 forward, 1 backward. Memory: none. Needs: nothing.
    Source: Liang et al. 2022, arXiv 2207.08980; ranks by logits, not by votes of dense features, is our simplification.
    w 0.1 and s 1 as in its README (github.com/megvii-research/zipfls).
    """

    weight: float = 0.1
    power: float = 1.0

    def __post_init__(self) -> None:
        check_settings("method", self, weight=">= 0", power="> 0")

    def setup(self, setup: Setup) -> None:
        if setup.classes < 3:
            raise Refused(
                f"method zipf_label_smoothing needs 3 classes or more, to rank the others, got {setup.classes}"
            )

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        logits = model(batch.x)
        z = logits.float()
        cross_entropy = F.cross_entropy(z, batch.y)
        label = F.one_hot(batch.y, z.shape[1]).bool()
        others = z.masked_fill(label, -torch.inf).sort(dim=1, descending=True).values[:, :-1]  # (N, C - 1)
        rank = torch.arange(1, z.shape[1], device=z.device)
        law = (-self.power * rank.log()).log_softmax(0).expand_as(others)
        kl = F.kl_div(others.log_softmax(1), law, reduction="batchmean", log_target=True)
        total = cross_entropy + self.weight * kl
        return Step(LossTerms(total, cross_entropy, kl, torch.zeros_like(total)), logits, batch.y)
