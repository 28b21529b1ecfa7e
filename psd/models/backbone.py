"""The feature maps of a classification network, for heads that look at every place of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from psd.checks import Refused

PROBE = 128  # side in pixels of the image that finds out where the maps are


class Backbone(nn.Module):
    """(N, 3, H, W) -> the deepest map of each resolution, the finest first: a list of (N, C, H / stride, W / stride).

    `body` is the classification network with the names that its parameters had; what came after the last map is taken
    out, so that every parameter left has a part in the maps.

    Args:
        body: a classification network of which some modules give maps: (N, C, H, W), or (N, H, W, C) as torchvision's
            Swin transformers do.
        name: for messages.

    Attributes:
        strides, channels: of each map.

    Raises:
        ValueError: no maps, as of a vision transformer that keeps a sequence of tokens.
    """

    def __init__(self, body: nn.Module, name: str) -> None:
        super().__init__()
        found, order = _probe(body, name)
        after = order[order.index(list(found)[-1]) + 1 :] if found else order
        if len(_leaves(body, after)) > len(_leaves(body, order)) / 2:  # as where all but the embedding is of tokens
            raise Refused(
                f"model {name!r} gives no feature maps (a vision transformer keeps tokens); take a convolutional "
                "network or a Swin transformer as backbone"
            )
        self.maps = list(found)  # the names of the modules that give them
        self.strides = [stride for stride, _, _ in found.values()]
        self.channels = [channels for _, channels, _ in found.values()]
        self._last_is_channel = [last for _, _, last in found.values()]
        _take_out(body, after)
        self.body = body
        self._seen: dict[str, Tensor] = {}
        modules = dict(body.named_modules())
        for name in self.maps:  # once, and not in each forward: torch 2.6 compiles no forward that registers hooks
            modules[name].register_forward_hook(_Keep(self._seen, name))

    def forward(self, x: Tensor) -> list[Tensor]:
        self.body(x)
        maps = [self._seen[name] for name in self.maps]
        self._seen.clear()
        of_last = zip(maps, self._last_is_channel, strict=True)
        return [found.permute(0, 3, 1, 2) if last else found for found, last in of_last]


class _Keep:
    """A hook that keeps what a module gives; no closure, so that a network with it can be copied and pickled."""

    def __init__(self, seen: dict[str, Tensor], name: str) -> None:
        self.seen, self.name = seen, name

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen[self.name] = output


Found = dict[str, tuple[int, int, bool]]  # of a module's name: stride, channels, whether they come last


@torch.no_grad()
def _probe(body: nn.Module, name: str) -> tuple[Found, list[str]]:
    """The last module to give each resolution, finest first; and all modules in the order in which they ended."""
    order: list[str] = []
    outputs: dict[str, Any] = {}

    def note(label: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            order.append(label)
            outputs[label] = output if isinstance(output, Tensor) else None

        return hook

    hooks = [module.register_forward_hook(note(label)) for label, module in body.named_modules() if label]
    training = body.training
    body.eval()
    try:
        side = _side(body)
        body(torch.zeros(1, 3, side, side))
    except Exception as error:  # each network fails in its own way
        raise Refused(f"model {name!r} does not take images of {side} x {side} pixels ({error})") from error
    finally:
        body.train(training)
        for hook in hooks:
            hook.remove()
    by_stride: dict[int, tuple[int, str, int, bool]] = {}
    least = side
    for label in dict.fromkeys(order):
        output = outputs[label]
        if output is None or output.ndim != 4 or len(output) != 1:  # of one image: windows of attention are several
            continue
        last = output.shape[1] == output.shape[2] != output.shape[3]
        height, width, channels = output.shape[1:] if last else (*output.shape[2:], output.shape[1])
        if not 1 < height == width <= least:  # pooled, or coarser maps came before
            continue
        least, stride, depth = height, 2 ** round(math.log2(side / height)), label.count(".")
        # Of one resolution the last of those that stand highest in the tree: a stage, not what is inside of the next
        if stride not in by_stride or depth <= by_stride[stride][0]:
            by_stride[stride] = depth, label, channels, last
    return {by_stride[s][1]: (s, *by_stride[s][2:]) for s in sorted(by_stride)}, list(dict.fromkeys(order))


def _side(body: nn.Module) -> int:
    """The side of the images that a network is built for, where it takes no other."""
    config = getattr(body, "pretrained_cfg", None) or getattr(body, "default_cfg", None) or {}
    fixed = config.get("fixed_input_size") if isinstance(config, dict) else None
    return int(config["input_size"][-1]) if fixed else PROBE


def _leaves(body: nn.Module, names: Sequence[str]) -> list[str]:
    """Those of these modules that have parameters and no parts."""
    modules = dict(body.named_modules())
    return [name for name in names if not [*modules[name].children()] and [*modules[name].parameters()]]


def _take_out(body: nn.Module, after: Sequence[str]) -> None:
    """Replace what ended after the last map, and has parameters, by nothing."""
    modules = dict(body.named_modules())
    for name in _leaves(body, after):
        parent, _, own = name.rpartition(".")
        setattr(modules[parent] if parent else body, own, nn.Identity())


def map_at(strides: Sequence[int], least: int) -> int:
    """The index of the finest map whose stride is at least that; of the last one if there is none."""
    return next((k for k, stride in enumerate(strides) if stride >= least), len(strides) - 1)
