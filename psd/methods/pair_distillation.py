"""Same-class pairs whose two predictions teach each other, without swapping anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from psd.features import features_and_logits
from psd.losses import CrossEntropy, Direction, FeatureDistance, SelfDistillationLoss
from psd.methods import Batch, Method, Progress, Step


@dataclass(kw_only=True)
class PairDistillation(Method):
    """Options as in `psd.SelfDistillationLoss`.

    Loss: that of `psd.SelfDistillationLoss` on the two images of each pair.
    Cost: 1 forward and 1 backward of 2N images. Memory: none. Needs: partners.
    Source: our control, patch swap without the swap. CS-KD is its form without gradient into the partner's prediction.
    """

    temperature: float = 4.0
    weight: float = 1.0
    detach: bool = False
    direction: Direction = "symmetric"
    cross_entropy: CrossEntropy = "both"
    feature_weight: float = 0.0
    feature_distance: FeatureDistance = "cosine"

    needs: ClassVar[frozenset[str]] = frozenset({"partner"})
    passes_per_anchor: ClassVar[int] = 2

    def __post_init__(self) -> None:
        self.loss()  # refuses what is out of range

    def loss(self) -> SelfDistillationLoss:
        """Of the settings as they are now."""
        return SelfDistillationLoss(
            self.temperature,
            self.weight,
            self.detach,
            self.direction,
            self.cross_entropy,
            self.feature_weight,
            self.feature_distance,
        )

    def images(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor]:
        """The two images of each pair as the network sees them."""
        assert batch.partner is not None
        return batch.x, batch.partner

    def pair(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor, Tensor]:
        """The two images of each pair and their target: labels (N,) or probabilities (N, C)."""
        return *self.images(batch, progress), batch.y

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        *images, target = self.pair(batch, progress)
        x = torch.cat(images)  # (2N, C, H, W)
        if self.feature_weight > 0:
            features, logits = features_and_logits(model, x)
            terms = self.loss()(*logits.chunk(2), target, *features.chunk(2))
        else:
            logits = model(x)
            terms = self.loss()(*logits.chunk(2), target)
        return Step(terms, logits, torch.cat([target, target]))
