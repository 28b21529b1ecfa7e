"""Two photographs of dogs: one class, two very different images, for a first look at a swapped pair.

They are from torchvision's gallery (BSD 3-Clause, its text lies beside them), reduced to 224 x 224. `said` is what one
pretrained network says of them, written by `python benchmarks/gap.py dogs`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from psd.data import pictures

FOLDER = Path(__file__).parent / "photographs"
FILES = (FOLDER / "dog1.jpg", FOLDER / "dog2.jpg")


def load() -> Tensor:
    """The two photographs, uint8 (2, 3, 224, 224)."""
    return torch.stack([F.pil_to_tensor(pictures.shown(file)) for file in FILES])


def said() -> dict[str, Any]:
    """What a network says of them, whole and after swaps.

    Returns:
        `network`, its name, and `pairs`, a mapping from "whole" and from each patch size ("8" to "112", in pixels) to
        `p_a` and `p_b`: P(dog) of each image, the sum over ImageNet's 118 breeds, with an entry for each mask. That of
        index k is `psd.patch_mask(1, grid, generator=torch.Generator().manual_seed(k))`. And `top`, the five
        likeliest of ImageNet's classes, with their probabilities, for each of the two whole images.
    """
    found: dict[str, Any] = json.loads((FOLDER / "said.json").read_text())
    return found
