"""Networks for segmentation: torchvision's heads on the maps of any backbone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from psd.models.backbone import Backbone, map_at


class SegmentationNetwork(nn.Module):
    """(N, 3, H, W) -> logits (N, C, H, W): a head on a backbone's maps, resized to the image (bilinear).

    Attributes:
        backbone: see `psd.models.backbone.Backbone`. num_classes: C, with background.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, chosen: list[int], num_classes: int) -> None:
        super().__init__()
        self.backbone, self.head, self.num_classes = backbone, head, num_classes
        self._chosen = chosen  # of the maps, those that the head takes

    def forward(self, x: Tensor) -> Tensor:
        maps = self.backbone(x)
        return F.interpolate(self.head([maps[k] for k in self._chosen]), size=x.shape[-2:], mode="bilinear")


class _Single(nn.Module):
    """A head of torchvision's that takes one map."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, maps: list[Tensor]) -> Tensor:
        found: Tensor = self.head(maps[0])
        return found


class _LowAndHigh(nn.Module):
    """torchvision's LR-ASPP head, which takes a fine and a coarse map by name."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, maps: list[Tensor]) -> Tensor:
        found: Tensor = self.head({"low": maps[0], "high": maps[1]})
        return found


def fcn(backbone: Backbone, num_classes: int) -> SegmentationNetwork:
    """Long et al., CVPR 2015, as torchvision has it: two convolutions on the last map."""
    from torchvision.models.segmentation.fcn import FCNHead

    return SegmentationNetwork(backbone, _Single(FCNHead(backbone.channels[-1], num_classes)), [-1], num_classes)


def deeplabv3(backbone: Backbone, num_classes: int) -> SegmentationNetwork:
    """Chen et al. 2017, arXiv 1706.05587, as torchvision has it: atrous spatial pyramid pooling on the last map."""
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead

    return SegmentationNetwork(backbone, _Single(DeepLabHead(backbone.channels[-1], num_classes)), [-1], num_classes)


def lraspp(backbone: Backbone, num_classes: int) -> SegmentationNetwork:
    """Howard et al., ICCV 2019, section 6.4, as torchvision has it: the last map, and one of twice its resolution or
    more."""
    from torchvision.models.segmentation.lraspp import LRASPPHead

    low = max(0, map_at(backbone.strides, backbone.strides[-1]) - 1)
    head = LRASPPHead(backbone.channels[low], backbone.channels[-1], num_classes, inter_channels=128)
    return SegmentationNetwork(backbone, _LowAndHigh(head), [low, -1], num_classes)


HEADS: dict[str, Callable[[Backbone, int], nn.Module]] = {"fcn": fcn, "lraspp": lraspp, "deeplabv3": deeplabv3}
