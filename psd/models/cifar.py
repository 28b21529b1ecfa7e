"""Networks for 32 x 32 images: ResNets of 6n + 2 layers, wide ResNets, and torchvision's with a stem for them."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from psd.checks import Refused
from psd.models import libraries


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 for 32 x 32 images, (N, 3, H, W) -> (N, num_classes).

    Three stages of n blocks with 16, 32 and 64 channels on maps of 32, 16 and 8 pixels. Shortcuts have no
    parameters (option A): where a stage begins, every second pixel, and zeros for the new channels.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.

    Raises:
        ValueError: a depth that is not 6n + 2.
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        n = _blocks_per_stage(depth, 2)
        self.conv1, self.bn1 = _conv3x3(3, 16), nn.BatchNorm2d(16)
        self.layer1 = _stage(_Block, n, 16, 16, stride=1)
        self.layer2 = _stage(_Block, n, 16, 32, stride=2)
        self.layer3 = _stage(_Block, n, 32, 64, stride=2)
        self.fc = nn.Linear(64, num_classes)
        _he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))  # (N, 64, H/4, W/4)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class _Block(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x)))))), with option A where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv3x3(c_in, c_out, stride), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = _conv3x3(c_out, c_out), nn.BatchNorm2d(c_out)
        self.stride, self.new_channels = stride, c_out - c_in

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        if self.stride > 1 or self.new_channels:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(out + x, inplace=True)


class WideResNet(nn.Module):
    """WRN-depth-width for 32 x 32 images, (N, 3, H, W) -> (N, num_classes); depth is 6n + 4.

    Pre-activation blocks of two 3 x 3 convolutions, 16k, 32k and 64k channels for width k, no dropout.

    Source: Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016, table 1. Where the shape changes, the
    shortcut is a 1 x 1 convolution of the activated input, as in their code.

    Raises:
        ValueError: a depth that is not 6n + 4.
    """

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        n = _blocks_per_stage(depth, 4)
        self.conv1 = _conv3x3(3, 16)
        self.layer1 = _stage(_PreActivationBlock, n, 16, 16 * width, stride=1)
        self.layer2 = _stage(_PreActivationBlock, n, 16 * width, 32 * width, stride=2)
        self.layer3 = _stage(_PreActivationBlock, n, 32 * width, 64 * width, stride=2)
        self.bn = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        _he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))  # (N, 64k, H/4, W/4)
        x = F.relu(self.bn(x), inplace=True)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class _PreActivationBlock(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x))))))."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(c_in), _conv3x3(c_in, c_out, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(c_out), _conv3x3(c_out, c_out)
        same = stride == 1 and c_in == c_out
        self.shortcut = None if same else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x), inplace=True)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))
        return out + (x if self.shortcut is None else self.shortcut(activated))


def _conv3x3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)


def _stage(block: Callable[..., nn.Module], n: int, c_in: int, c_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(block(c_in, c_out, stride), *(block(c_out, c_out, 1) for _ in range(n - 1)))


def _blocks_per_stage(depth: int, rest: int) -> int:
    n, remainder = divmod(depth - rest, 6)
    if remainder or n < 1:
        raise Refused(f"depth must be 6n + {rest} with n >= 1, got {depth}")
    return n


def _he_init(model: nn.Module) -> None:
    """He et al., "Delving Deep into Rectifiers", ICCV 2015, section 2.2, fan-out as in torchvision's ResNet."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _resnet_32(name: str, num_classes: int) -> nn.Module:
    """torchvision's ResNet with the 32 x 32 stem: maps of 32, 16, 8 and 4 pixels instead of 8, 4, 2 and 1."""
    model = libraries.torchvision(name, num_classes)
    model.conv1, model.maxpool = _conv3x3(3, 64), nn.Identity()
    _he_init(model.conv1)
    return model


def _mobilenet_v2_32(num_classes: int) -> nn.Module:
    """torchvision's MobileNetV2 for 32 x 32: stride 1 in the stem and in the 24-channel stage, no dropout.

    With the five strides for 224 x 224 the last map would be a single pixel. Without these two it is 4 x 4, as
    in the usual CIFAR adaptation (github.com/kuangliu/pytorch-cifar), which has no dropout either.
    """
    from torchvision.models import MobileNetV2

    rows = [  # expansion, channels, blocks, stride
        [1, 16, 1, 1],
        [6, 24, 2, 1],  # stride 2 in table 2 of the paper
        [6, 32, 3, 2],
        [6, 64, 4, 2],
        [6, 96, 3, 1],
        [6, 160, 3, 2],
        [6, 320, 1, 1],
    ]
    model: nn.Module = MobileNetV2(num_classes, inverted_residual_setting=rows, dropout=0.0)
    model.get_submodule("features.0.0").stride = (1, 1)  # type: ignore[assignment]
    return model


BUILT_IN: dict[str, Callable[[int], nn.Module]] = {
    "resnet8": lambda classes: CifarResNet(8, classes),
    "resnet14": lambda classes: CifarResNet(14, classes),
    "resnet20": lambda classes: CifarResNet(20, classes),
    "resnet56": lambda classes: CifarResNet(56, classes),
    "resnet18": lambda classes: _resnet_32("resnet18", classes),
    "resnet34": lambda classes: _resnet_32("resnet34", classes),
    "resnet50": lambda classes: _resnet_32("resnet50", classes),
    "wrn16_4": lambda classes: WideResNet(16, 4, classes),
    "wrn28_10": lambda classes: WideResNet(28, 10, classes),
    "mobilenetv2": lambda classes: _mobilenet_v2_32(classes),
}
