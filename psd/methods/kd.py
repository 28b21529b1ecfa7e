"""Knowledge distillation from a trained network: what self-distillation does without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from psd.checks import Refused, check_settings
from psd.losses import LossTerms, softened_kl
from psd.methods import Batch, Method, Progress, Setup, Step


@dataclass(kw_only=True)
class Kd(Method):
    """teacher: folder of a finished run, or its model.safetensors. share: a in [0, 1]; temperature T > 0.

    Loss: (1 - a) CE(z, y) + a T^2 KL(q_teacher || q), q = softmax(z / T).
    Cost: 2 forwards (the teacher's counts as an image pass), 1 backward; the teacher's own training is extra.
    Memory: the teacher's weights. Needs: a teacher trained on the same classes.
    Source: Hinton et al. 2015, arXiv 1503.02531; T 4, a 0.9 as in mdistiller (github.com/megvii-research/mdistiller).
    """

    teacher: str = ""
    share: float = 0.9
    temperature: float = 4.0

    passes_per_anchor: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_settings("method", self, share=">= 0 and <= 1", temperature="> 0")

    def setup(self, setup: Setup) -> None:
        if not self.teacher:
            raise Refused("method.teacher is missing: give the folder of a finished run, --method.teacher runs/...")
        self._teacher = setup.load_model(self.teacher)
        known = self._teacher.num_classes
        if known != setup.classes:
            raise Refused(f"method.teacher {self.teacher} knows {known} classes, the data has {setup.classes}")

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        self._teacher.to(batch.x.device)  # after the first step there is nothing to move
        with torch.no_grad():
            teacher = self._teacher(batch.x).float()
        logits = model(batch.x)
        z = logits.float()
        cross_entropy = F.cross_entropy(z, batch.y)
        distillation = softened_kl(teacher, z, self.temperature)
        total = (1 - self.share) * cross_entropy + self.share * distillation
        return Step(LossTerms(total, cross_entropy, distillation, torch.zeros_like(total)), logits, batch.y)
