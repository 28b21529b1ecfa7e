"""DLB: the images of the step before, augmented anew, must be answered as they were then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psd.checks import check_settings
from psd.losses import LossTerms, softened_kl
from psd.methods import Batch, Method, Progress, Setup, Step


@dataclass(kw_only=True)
class Dlb(Method):
    """Self-distillation from the last mini-batch. temperature T > 0, weight w >= 0.

    Loss: CE(this batch and the one before) + w T^2 KL(q_then || q_now) over the images of the step before; q_then is
    what was predicted for them then, under another augmentation, without gradient. The first step has CE alone.
    Cost: 1 forward and 1 backward of 2N images. Memory: logits of one batch. Needs: the previous batch.
    Source: Shen et al. 2022, arXiv 2203.16172; T 3 and w 1 are the paper's as others report them, which its code does
    not confirm.
    """

    temperature: float = 3.0
    weight: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset({"previous"})
    passes_per_anchor: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_settings("method", self, temperature="> 0", weight=">= 0")

    def setup(self, setup: Setup) -> None:
        self._then: Tensor | None = None

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        x, target = batch.x, batch.y
        if batch.previous is not None:
            x, target = torch.cat([x, batch.previous.x]), torch.cat([target, batch.previous.y])
        logits = model(x)
        z = logits.float()
        cross_entropy = F.cross_entropy(z, target)
        distillation = torch.zeros_like(cross_entropy)
        if batch.previous is not None and self._then is not None:
            distillation = softened_kl(self._then.to(z.device), z[len(batch.x) :], self.temperature)
        self._then = z[: len(batch.x)].detach().clone()
        total = cross_entropy + self.weight * distillation
        return Step(LossTerms(total, cross_entropy, distillation, torch.zeros_like(total)), logits, target)

    def state_dict(self) -> dict[str, Any]:
        return {"then": self._then}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._then = state["then"]
