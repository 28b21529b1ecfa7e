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
        self.statistics = self.mean, self.std
        self._on: dict[tuple[torch.device, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 2, 3, 1)  # (N, H, W, C)
        if not pixels.is_contiguous() or not len(images):
            shift, scale = self._numbers(images.device, 1)
            return images.float().add_(shift[:, None, None]).mul_(scale[:, None, None])
        # Row by row: on a CPU, sums over the three values of a pixel take several times as long as over a row's.
        shift, scale = self._numbers(images.device, images.shape[3])
        result = pixels.float()
        result.view(-1, len(shift)).add_(shift).mul_(scale)
        return result.permute(0, 3, 1, 2)

    def _numbers(self, device: torch.device, width: int) -> tuple[Tensor, Tensor]:
        """What is added and multiplied, for a row of pixels; sent once, as the host waits for what it sends."""
        if (device, width) not in self._on:
            mean, std = torch.tensor(self.mean), torch.tensor(self.std)
            shift, scale = (x.repeat(width).to(device) for x in (-255 * mean, 1 / (255 * std)))
            self._on[device, width] = shift, scale
        return self._on[device, width]
