"""Pixels as a network takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalisation:
    """uint8 images (N, C, H, W) -> float32 (x / 255 - mean) / std, on the images' device, in their memory format.

    Args:
        mean, std: of pixels / 255, one number per channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(mean), tuple(std)
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}  # sent once, as the host waits for what it sends

    def __call__(self, images: Tensor) -> Tensor:
        if images.device not in self._on:
            mean, std = torch.tensor(self.mean), torch.tensor(self.std)
            numbers = (-255 * mean, 1 / (255 * std))
            self._on[images.device] = tuple(x[:, None, None].to(images.device) for x in numbers)  # type: ignore[assignment]
        shift, scale = self._on[images.device]
        return images.float().add_(shift).mul_(scale)
