"""The networks that are trained, by name: CIFAR and wide ResNets of our own, torchvision's and timm's.

"ResNet-18" means two networks in this field. Ours is post-activation: torchvision's blocks behind the stem for
32 x 32 images (one 3 x 3 convolution of stride 1, no max-pool). CS-KD, PS-KD and BAKE use pre-activation
blocks, so their numbers are of another network.

torchvision and timm are imported on first use. Weights are drawn from torch's global generator, so that
`torch.manual_seed` before `build` fixes them; nothing is ever downloaded.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from psd.checks import Refused

# ------------------------------------------------------------------------------------------
# By name
# ------------------------------------------------------------------------------------------


def build(name: str, num_classes: int, *, weights: str | None = None, **options: Any) -> nn.Module:
    """Build a network with fresh weights, (N, 3, H, W) -> logits (N, num_classes).

    Args:
        name: one of `names()`, all made for 32 x 32 images, or "torchvision:NAME" (its classification models)
            or "timm:NAME", both as their authors made them, most for 224 x 224 images.
        num_classes: at least 2; kept as the attribute `num_classes` of the model.

    Raises:
        ValueError: unknown name (with the nearest known ones), timm not installed, `num_classes` not an
            int of at least 2.

    Sources: `CifarResNet`, `WideResNet`; resnet18/34/50: He et al., "Deep Residual Learning for Image
    Recognition", CVPR 2016, table 1; mobilenetv2: Sandler et al., "MobileNetV2", CVPR 2018, table 2.

    >>> import torch
    >>> build("resnet8", 10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    check_name(name)
    if not isinstance(num_classes, int) or num_classes < 2:
        raise Refused(f"num_classes must be an int of at least 2, got {num_classes!r}")
    source, _, bare = name.rpartition(":")
    model = {"": _built_in, "torchvision": _torchvision, "timm": _timm}[source](bare, num_classes)
    model.num_classes = num_classes  # type: ignore[assignment]  # nn.Module declares every attribute Tensor | Module
    return model


def names() -> list[str]:
    """The built-in names, in the order of a table of results.

    >>> names()[:4]
    ['resnet8', 'resnet14', 'resnet20', 'resnet56']
    """
    return list(_BUILT_IN)


def check_name(name: str) -> None:
    """Refuse a name that `build` does not know, without building anything.

    A built-in name costs nothing; the others import the library that they name.

    Raises:
        ValueError: with the name, the nearest known names and what else there is; with the remedy where timm
            is not installed.
    """
    if isinstance(name, str):
        source, _, bare = name.rpartition(":")
        if name in _BUILT_IN or (source == "torchvision" and bare in _torchvision_names()):
            return
        if source == "timm" and bare in _timm_names():
            return
    nearest = _nearest(name) if isinstance(name, str) else []
    hint = f"; did you mean {' or '.join(map(repr, nearest))}?" if nearest else "."
    raise Refused(f"model.name {name!r} is unknown{hint} Known: {', '.join(_BUILT_IN)}, torchvision:NAME and timm:NAME")


def _nearest(name: str) -> list[str]:
    """Up to three known names like this one, best first; a bare name is looked for in every library."""
    source, _, bare = name.rpartition(":")
    bare = bare.lower().partition(".")[0]  # timm's names of weights, "resnet18.a1_in1k", mean its "resnet18"
    full: dict[str, str] = {}
    if source != "torchvision":
        with contextlib.suppress(ValueError):  # timm is not installed: nothing to suggest from it
            full.update({known: f"timm:{known}" for known in _timm_names()})
    if source != "timm":
        full.update({known: f"torchvision:{known}" for known in _torchvision_names()})
    if source not in ("torchvision", "timm"):
        full.update({known: known for known in _BUILT_IN})  # ours wins where several have one name
    matches = difflib.get_close_matches(bare, full, n=3, cutoff=0.7)
    clear = bool(matches) and difflib.SequenceMatcher(None, bare, matches[0]).ratio() > 0.9
    return [full[match] for match in matches[: 1 if clear else 3]]


# ------------------------------------------------------------------------------------------
# Features
# ------------------------------------------------------------------------------------------


def classifier(model: nn.Module) -> nn.Linear:
    """The final linear layer of a classification network: its last `nn.Linear` with one output per class.

    The number of classes is the model's attribute `num_classes` (set by `build` and by timm); a model without
    one gives its last `nn.Linear`.

    Raises:
        ValueError: no such layer, as in torchvision's SqueezeNet, which classifies by a convolution.
    """
    modules = list(model.modules())
    # The first that says so: a wrapper such as DistributedDataParallel hides the model's attributes.
    classes = next((c for m in modules if isinstance(c := getattr(m, "num_classes", None), int)), None)
    linears = [m for m in modules if isinstance(m, nn.Linear) and classes in (None, m.out_features)]
    if not linears:
        raise Refused(
            f"model {type(model).__name__} has no nn.Linear with num_classes={classes} outputs, so its "
            "penultimate features are unknown; use another model, or feature_weight=0"
        )
    return linears[-1]


def features_and_logits(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """One forward pass that also returns what the final linear layer is given.

    Args:
        model: a network whose last step is a linear layer (see `classifier`).
        x: images (N, 3, H, W).

    Returns:
        (features (N, D), logits (N, num_classes)), both with gradients: logits = features W^T + b.

    Raises:
        ValueError: the final linear layer is missing, or is not called exactly once with (N, D).
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile would compile anew for the hook of every step
    inputs: list[Tensor] = []
    handle = classifier(model).register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    try:
        logits: Tensor = model(x)
    finally:
        handle.remove()
    if len(inputs) != 1 or inputs[0].dim() != 2:
        raise Refused(
            f"model {type(model).__name__} gave its final nn.Linear inputs of shapes "
            f"{[tuple(i.shape) for i in inputs]}, expected one (N, D); use another model, or feature_weight=0"
        )
    return inputs[0], logits


# ------------------------------------------------------------------------------------------
# CIFAR ResNet
# ------------------------------------------------------------------------------------------


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


# ------------------------------------------------------------------------------------------
# Wide ResNet
# ------------------------------------------------------------------------------------------


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


# ------------------------------------------------------------------------------------------
# torchvision's and timm's
# ------------------------------------------------------------------------------------------


def _built_in(name: str, num_classes: int) -> nn.Module:
    return _BUILT_IN[name](num_classes)


def _resnet_32(name: str, num_classes: int) -> nn.Module:
    """torchvision's ResNet with the 32 x 32 stem: maps of 32, 16, 8 and 4 pixels instead of 8, 4, 2 and 1."""
    model = _torchvision(name, num_classes)
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


def _torchvision(name: str, num_classes: int) -> nn.Module:
    from torchvision.models import get_model

    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):  # with auxiliary heads they return a tuple while training
        options = {"aux_logits": False, "init_weights": True}
    model: nn.Module = get_model(name, weights=None, num_classes=num_classes, **options)
    return model


def _torchvision_names() -> list[str]:
    """Classification models alone; get_model also knows detection, segmentation, video and optical flow."""
    from torchvision import models

    known: list[str] = models.list_models(module=models)
    return known


def _timm(name: str, num_classes: int) -> nn.Module:
    timm = importlib.import_module("timm")
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes)
    return model


def _timm_names() -> list[str]:
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise Refused('model.name timm:NAME needs timm, which is missing: pip install ".[timm]"') from error
    known: list[str] = timm.list_models()
    return known


_BUILT_IN: dict[str, Callable[[int], nn.Module]] = {
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


def parameter_groups(model, lr, weight_decay, *, head_lr=None, decay_norms_and_biases=True):
    return [{"params": list(model.parameters())}]


def normalisation(name, weights):
    return None
