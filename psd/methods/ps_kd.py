"""PS-KD: what the network said of an image an epoch ago softens its label, more and more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from psd.checks import check_settings
from psd.losses import check_probabilities
from psd.methods import Batch, Method, Progress, Setup, Step, single_terms


@dataclass(kw_only=True)
class PsKd(Method):
    """Progressive self-knowledge distillation. share: a in [0, 1], the weight of the old prediction at the end.

    Loss: CE with the target (1 - a_t) y + a_t p_old(x), a_t = a t / E in epoch t = 1 ... E, at most a; p_old is the
    prediction for this image, under the augmentation of then, when it was last an anchor; the label where it never was.
    Cost: 1 forward, 1 backward. Memory: a table of M x C float32 on the device, and in checkpoints. Needs: sample
    indices.
    Source: Kim et al. 2021, arXiv 2006.12000, and its code (github.com/lgcnsai/PS-KD-Pytorch); a 0.8 as there.
    """

    share: float = 0.8

    def __post_init__(self) -> None:
        check_settings("method", self, share=">= 0 and <= 1")

    def setup(self, setup: Setup) -> None:
        self._past = torch.zeros(setup.samples, setup.classes)
        self._seen = torch.zeros(setup.samples, 1)

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        logits = model(batch.x)
        z = logits.float()
        if self._past.device != z.device:
            self._past, self._seen = self._past.to(z.device), self._seen.to(z.device)
        grown = min(1.0, (progress.epoch + 1) / progress.epochs)  # a budget may end inside its last epoch
        share = self.share * grown * self._seen[batch.index]  # (N, 1)
        hard = F.one_hot(batch.y, z.shape[1])
        target = (1 - share) * hard + share * self._past[batch.index]
        check_probabilities(target)
        self._past[batch.index] = z.detach().softmax(1)
        self._seen[batch.index] = 1.0
        return Step(single_terms(F.cross_entropy(z, target)), logits, batch.y)

    def state_dict(self) -> dict[str, Any]:
        return {"past": self._past, "seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._past, self._seen = state["past"], state["seen"]
