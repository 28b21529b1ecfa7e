"""Patch swap trains any classifier as it is: nothing is added to it, and what is learnt reaches its first layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import psd
from psd import models


class Own(nn.Module):
    """A network of somebody else's: no attribute of psd's, a flat input, a head in the middle of the list."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.logits = nn.Linear(24, num_classes)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 24), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.logits(self.body(x))
        return out


# Name, side of the images, options: the smallest variant at the smallest image that it takes.
NETWORKS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "psd ResNet": ("resnet8", 16, {}),
    "psd wide ResNet": ("wrn16_4", 16, {}),
    "ResNet": ("torchvision:resnet18", 32, {}),
    "wide ResNet": ("torchvision:wide_resnet50_2", 32, {}),
    "MobileNetV3": ("torchvision:mobilenet_v3_small", 32, {}),
    "EfficientNet": ("torchvision:efficientnet_b0", 32, {}),
    "ConvNeXt": ("torchvision:convnext_tiny", 32, {}),
    "ViT": ("torchvision:vit_b_16", 32, {"image_size": 32}),
    "Swin": ("torchvision:swin_t", 32, {}),
    "RegNet": ("torchvision:regnet_y_400mf", 32, {}),
    "DeiT": ("timm:deit_tiny_patch16_224", 32, {"img_size": 32}),
    "distilled DeiT": ("timm:deit_tiny_distilled_patch16_224", 32, {"img_size": 32}),
    "MaxViT": ("timm:maxvit_pico_rw_256", 64, {"img_size": 64}),
    "CoAtNet": ("timm:coatnet_nano_rw_224", 32, {"img_size": 32}),
    "EfficientViT, MIT's": ("timm:efficientvit_b0", 32, {}),
    "EfficientViT, Microsoft's": ("timm:efficientvit_m0", 64, {"img_size": 64}),
    "MLP-Mixer": ("timm:mixer_s32_224", 32, {"img_size": 32}),
    "your own": ("own", 16, {}),
}


def _build(name: str, options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    return Own(5) if name == "own" else models.build(name, 5, **options)


def _first_layer(model: nn.Module, x: Tensor) -> nn.Module:
    """The layer with weights that sees the images first."""
    called: list[nn.Module] = []
    handles = [
        module.register_forward_hook(lambda module, args, out: called.append(module))
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        model.eval()(x)
    for handle in handles:
        handle.remove()
    return called[0]


@pytest.mark.parametrize("family", NETWORKS)
def test_a_network_trains_by_patch_swap_without_a_parameter_more_and_down_to_its_first_layer(family: str) -> None:
    name, size, options = NETWORKS[family]
    model = _build(name, options)
    loss = psd.SelfDistillationLoss()
    x_a, x_b = torch.randn(2, 2, 3, size, size)
    y = torch.tensor([1, 3])
    first = _first_layer(model, x_a)
    before = {key: parameter.shape for key, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.01)

    model.train()
    for _ in range(2):  # a head that starts at zero, as Mixer's does, sends nothing back in the first step
        images = torch.cat(psd.patch_swap(x_a, x_b, 8))  # (4, 3, S, S)
        optimizer.zero_grad()
        loss(*model(images).chunk(2), y).total.backward()
        optimizer.step()

    assert {key: parameter.shape for key, parameter in model.named_parameters()} == before
    assert not loss.state_dict() and not list(loss.parameters())
    for key, parameter in model.named_parameters():  # both heads of a distilled network among them
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    assert first.get_parameter("weight").grad.any()  # type: ignore[union-attr]
